/* Preloaded into llama.cpp's tools: waits half a second at exit, so that their log thread can finish.
   Without it a tool may leave before its last lines are printed, with exit code 0 (7 of 12 runs on a busy machine). */
#include <unistd.h>

__attribute__((destructor)) static void linger(void) { usleep(500000); }
