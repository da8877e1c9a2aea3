"""The system calls that a program in the sandbox may make, as a filter that the kernel runs (seccomp).

An allow-list: what is not named is refused with EPERM. Left out on purpose: sockets (a socketpair is allowed), ptrace
and reading another process's memory, mounts, namespaces, keys, clocks, io_uring, memory that no limit counts (memfd,
System V), message queues, device nodes, BPF, userfaultfd, kernel modules, limits and priorities of other processes.
"""

from __future__ import annotations

import errno
import tempfile
from functools import lru_cache

_ALLOWED = """
access alarm arch_prctl brk chdir chmod clock_getres clock_gettime clock_nanosleep close close_range copy_file_range
creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve
exit exit_group faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fcntl fdatasync fgetxattr flistxattr
flock fork fstat fstatfs fsync ftruncate futex futimesat get_robust_list getcpu getcwd getdents getdents64 getegid
geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr kill lgetxattr link
linkat listxattr llistxattr lseek lstat madvise membarrier mincore mkdir mkdirat mlock mmap mprotect mremap msync
munlock munmap nanosleep newfstatat open openat pause pipe pipe2 poll ppoll pread64 preadv preadv2  pselect6
pwrite64 pwritev pwritev2 read readlink readlinkat readv recvfrom recvmsg rename renameat renameat2 restart_syscall
rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getparam sched_getscheduler sched_yield select sendfile sendmsg sendto
set_robust_list set_tid_address setgroups setitimer setpgid setresgid setresuid setrlimit setsid
setsockopt shutdown sigaltstack signalfd signalfd4 stat statfs statx symlink symlinkat sysinfo tgkill time
timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
times tkill truncate umask uname unlink unlinkat utime utimensat utimes vfork wait4 waitid write writev
"""
"""Changing user is the kernel's to refuse: the first process of a sandbox that root started gives root up with it."""

_NOT_THERE = ("clone3", "openat2", "fchmodat2", "futex_waitv")
"""Refused as if the kernel did not have them, so that the C library does without."""

_NEW_NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET} and NEWTIME
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_PRCTLS = (15, 16)  # PR_SET_NAME, PR_GET_NAME
_AF_UNIX = 1


class NoFilterError(RuntimeError):
    """The filter cannot be made on this machine; the message says why and what to do."""


@lru_cache(maxsize=1)
def system_call_filter() -> bytes:
    """The program for the kernel. Raises NoFilterError without libseccomp."""
    try:
        import pyseccomp as seccomp
    except (ImportError, RuntimeError, OSError) as error:  # the module looks for the C library when it is imported
        raise NoFilterError(f"{error}; install libseccomp (Debian, Ubuntu: apt-get install libseccomp2)") from error
    made = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))

    def add(action: int, name: str, *conditions: object) -> None:
        try:
            made.add_rule(action, name, *conditions)
        except (OSError, ValueError):  # this machine's processor, or an older libseccomp, has no such call
            return

    for name in _ALLOWED.split():
        add(seccomp.ALLOW, name)
    for name in _NOT_THERE:
        add(seccomp.ERRNO(errno.ENOSYS), name)
    add(seccomp.ALLOW, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _NEW_NAMESPACES, 0))
    add(seccomp.ALLOW, "socketpair", seccomp.Arg(0, seccomp.EQ, _AF_UNIX))
    add(seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0))  # its own; those of the first process would end it
    for number in _IOCTLS:
        add(seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.EQ, number))
    for number in _PRCTLS:
        add(seccomp.ALLOW, "prctl", seccomp.Arg(0, seccomp.EQ, number))
    with tempfile.TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
