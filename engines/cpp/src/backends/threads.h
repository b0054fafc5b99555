// How many threads the CPU libraries use and how these wait, as flowless/thread_waiting.py and flowless/machine.py
// decide.
#ifndef FLOWLESS_SRC_BACKENDS_THREADS_H
#define FLOWLESS_SRC_BACKENDS_THREADS_H

#include <cstdint>

namespace flowless::detail {

// Whether the user chose spinning threads (OMP_WAIT_POLICY=ACTIVE).
bool threadsStayAwake();

// Physical cores that this process may run on; the hyper-threads of one core count once.
int32_t usablePhysicalCores();

}  // namespace flowless::detail

#endif
