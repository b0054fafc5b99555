/* Calls every function of the C interface, from C: with null pointers, which each must refuse with a status and a
 * sentence. */
#include <flowless/flowless.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void refused(const char* call, flowless_status status) {
  if (status != FLOWLESS_INVALID || strlen(flowless_error()) == 0) {
    fprintf(stderr, "%s: status %d, '%s'; a null pointer must be refused.\n", call, (int)status, flowless_error());
    ++failures;
  }
}

#define REFUSED(call) refused(#call, call)

int main(void) {
  flowless_engine* engine = NULL;
  if (strlen(flowless_version()) == 0) {
    ++failures;
  }
  REFUSED(flowless_open(NULL, NULL, &engine));
  REFUSED(flowless_describe(NULL, NULL));
  REFUSED(flowless_label(NULL, 0, NULL));
  REFUSED(flowless_indices(NULL, 1, NULL, 0));
  REFUSED(flowless_prepare(NULL, NULL, NULL, 0));
  REFUSED(flowless_run(NULL, NULL, 0, 1, NULL, 0));
  REFUSED(flowless_average(NULL, NULL, 1, NULL, 0));
  REFUSED(flowless_stream_open(NULL, NULL, NULL));
  REFUSED(flowless_stream_push(NULL, NULL));
  REFUSED(flowless_stream_reset(NULL));
  REFUSED(flowless_stream_look(NULL, NULL));
  REFUSED(flowless_step(NULL, NULL, 0, NULL, 0, NULL));
  if (flowless_stream_close(NULL) != FLOWLESS_OK || flowless_close(NULL) != FLOWLESS_OK) {
    fprintf(stderr, "closing NULL must be allowed.\n");
    ++failures;
  }
  printf("flowless %s: %d failures\n", flowless_version(), failures);
  return failures != 0;
}
