// A bundle's files: their paths, which stay inside, and their hashes.
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "manifest.h"
#include "status.h"

namespace flowless::detail {
namespace {

namespace fs = std::filesystem;

constexpr int kMostLinks = 40;
constexpr size_t kBlock = 1 << 18;  // bytes read at once

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

struct FreeDigest {
  void operator()(EVP_MD_CTX* digest) const { EVP_MD_CTX_free(digest); }
};

// Follow links as far as they lead, also where what they lead to does not
// exist, as Python's os.path.realpath.
fs::path resolved(fs::path const& path) {
  std::error_code error;
  fs::path const whole = fs::absolute(path, error);
  fs::path result = whole.root_path();
  fs::path const parts = whole.relative_path();
  std::vector<fs::path> pending(parts.begin(), parts.end());
  std::reverse(pending.begin(), pending.end());
  int links = 0;
  while (!pending.empty()) {
    fs::path const name = pending.back();
    pending.pop_back();
    if (name.empty() || name == ".") {
      continue;
    }
    if (name == "..") {
      result = result.parent_path();
      continue;
    }
    fs::path const next = result / name;
    bool const link = fs::is_symlink(fs::symlink_status(next, error));
    fs::path const target = link && links < kMostLinks ? fs::read_symlink(next, error) : fs::path();
    if (target.empty()) {
      result = next;
      continue;
    }
    ++links;
    result = target.is_absolute() ? target.root_path() : result;
    fs::path const rest = target.relative_path();
    std::vector<fs::path> names(rest.begin(), rest.end());
    pending.insert(pending.end(), names.rbegin(), names.rend());
  }
  return result;
}

bool isInside(fs::path const& path, fs::path const& folder) {
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

bool leadsUp(std::string const& name) {
  fs::path const path(name);
  return std::any_of(path.begin(), path.end(), [](fs::path const& part) { return part == ".."; });
}

}  // namespace

std::string Manifest::pathOf(std::string const& name) const {
  if (name.find('\0') != std::string::npos) {
    throw Error(FLOWLESS_DAMAGED, folder +
                                      "/manifest.json: damaged (embedded null byte). Copy "
                                      "the bundle again, or export the model again.");
  }
  std::string const path = folder + "/" + name;
  bool const plain =
      !name.empty() && name.front() != '/' && !leadsUp(name) && name.find_first_of("\\:") == std::string::npos;
  if (!plain || !isInside(resolved(path), resolved(folder))) {
    throw Error(FLOWLESS_DAMAGED, folder + "/manifest.json: names the file " + quoted(name) +
                                      ", which lies outside the bundle. Only files below the "
                                      "bundle's folder are allowed; do not trust "
                                      "this bundle, export the model again.");
  }
  return path;
}

void Manifest::check(std::string const& name) const {
  std::string const path = pathOf(name);
  auto const record = files.find(name);
  if (record == files.end()) {
    throw Error(FLOWLESS_DAMAGED,
                folder + "/manifest.json: has no fingerprint of " + quoted(name) + ". Export the model again.");
  }
  std::error_code error;
  if (!fs::is_regular_file(path, error)) {
    throw Error(FLOWLESS_MISSING, path +
                                      ": this file of the bundle is missing. Copy the bundle "
                                      "again, whole, or export the model again.");
  }
  if (fs::file_size(path, error) != record->second.bytes || sha256OfFile(path) != record->second.sha256) {
    throw Error(FLOWLESS_DAMAGED, path +
                                      ": damaged: its SHA-256 is not the manifest's. Copy the "
                                      "bundle again, or export and build the "
                                      "model again.");
  }
}

std::string sha256OfFile(std::string const& path) {
  std::unique_ptr<std::FILE, CloseFile> const file(std::fopen(path.c_str(), "rb"));
  if (!file) {
    throw Error(errno == ENOENT ? FLOWLESS_MISSING : FLOWLESS_RUNTIME,
                path + ": cannot be read (" + std::strerror(errno) + ").");
  }
  std::unique_ptr<EVP_MD_CTX, FreeDigest> const digest(EVP_MD_CTX_new());
  std::vector<unsigned char> block(kBlock);
  bool works = digest != nullptr && EVP_DigestInit_ex(digest.get(), EVP_sha256(), nullptr) == 1;
  size_t count = 0;
  while (works && (count = std::fread(block.data(), 1, block.size(), file.get())) > 0) {
    works = EVP_DigestUpdate(digest.get(), block.data(), count) == 1;
  }
  if (std::ferror(file.get()) != 0) {
    throw Error(FLOWLESS_RUNTIME, path + ": cannot be read (" + std::strerror(errno) + ").");
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> hash{};
  unsigned length = 0;
  if (!works || EVP_DigestFinal_ex(digest.get(), hash.data(), &length) != 1) {
    throw Error(FLOWLESS_RUNTIME, path +
                                      ": OpenSSL cannot compute its SHA-256. Check OpenSSL's "
                                      "configuration (FIPS provider).");
  }
  std::string text;
  for (unsigned index = 0; index < length; ++index) {
    text += format("%02x", static_cast<unsigned>(hash[index]));
  }
  return text;
}

}  // namespace flowless::detail
