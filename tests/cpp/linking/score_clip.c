/* Print the version, and the scores of a clip that is read from standard input: score_clip BUNDLE < CLIP */
#include <flowless/flowless.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char* call) {
  fprintf(stderr, "%s: %s\n", call, flowless_error());
  return 1;
}

int main(int argc, char** argv) {
  flowless_engine* engine = NULL;
  flowless_info info = {0};
  uint8_t* clip;
  float* scores;
  info.size = sizeof(info);
  if (argc != 2) {
    return 2;
  }
  if (flowless_open(argv[1], NULL, &engine) != FLOWLESS_OK) {
    return failed("flowless_open");
  }
  if (flowless_describe(engine, &info) != FLOWLESS_OK) {
    return failed("flowless_describe");
  }
  clip = malloc(info.clip_bytes);
  scores = malloc((size_t)info.classes * sizeof(float));
  if (clip == NULL || scores == NULL || fread(clip, 1, info.clip_bytes, stdin) != info.clip_bytes) {
    return 1;
  }
  if (flowless_run(engine, clip, info.clip_bytes, 1, scores, (size_t)info.classes) != FLOWLESS_OK) {
    return failed("flowless_run");
  }
  printf("%s\n", flowless_version());
  for (int32_t index = 0; index < info.classes; ++index) {
    printf("%.9g\n", (double)scores[index]);
  }
  free(clip);
  free(scores);
  return flowless_close(engine) == FLOWLESS_OK ? 0 : failed("flowless_close");
}
