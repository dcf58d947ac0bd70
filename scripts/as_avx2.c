// Preloaded by scripts/as_avx2: hides AVX-512 and AMX from everything in the process.
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012  // 0: cpuid raises SIGSEGV in this thread and those it starts

static int patched;  // cpuid never faults: instructions that were cpuid once are ud2, and raise SIGILL

static void hide(unsigned leaf, unsigned part, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
  if (leaf != 7) return;
  if (part == 0) {
    *b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
    *c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
    *d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
  } else if (part == 1) {
    *a &= ~(1u << 4 | 1u << 5 | 1u << 21);  // AVX-VNNI, AVX512-BF16, AMX-FP16
  }
}

static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);
static struct sigaction others;  // what the program wants to be done about real faults

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)registers[REG_RIP];
  if (code[0] != 0x0f || code[1] != (patched ? 0x0b : 0xa2)) {  // not cpuid: a real fault
    real_sigaction(number, &others, NULL);
    return;
  }
  unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], a, b, c, d;
  if (!patched) syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  __cpuid_count(leaf, part, a, b, c, d);
  if (!patched) syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  hide(leaf, part, &a, &b, &c, &d);
  registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

// Libraries that report crashes would take our handler away, and then fall over the next cpuid.
int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
  if (number != (patched ? SIGILL : SIGSEGV)) {
    if (!real_sigaction) real_sigaction = dlsym(RTLD_NEXT, "sigaction");
    return real_sigaction(number, action, old);
  }
  if (old) *old = others;
  if (action) others = *action;
  return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
  struct sigaction action, old;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

__attribute__((constructor)) static void start(void) {
  real_sigaction = dlsym(RTLD_NEXT, "sigaction");
  patched = getenv("AS_AVX2_PATCHED") != NULL;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  real_sigaction(patched ? SIGILL : SIGSEGV, &action, NULL);
  if (!patched && syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
    perror("this machine cannot hide its instruction sets");
    exit(1);
  }
}
