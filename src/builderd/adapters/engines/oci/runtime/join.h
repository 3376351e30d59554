/* What join.c and start.c share: system calls, texts and reports, without a C library. */

/* include/uapi/asm-generic and arch/x86/entry/syscalls/syscall_64.tbl */
enum { WRITE = 1, OPEN = 2, CLOSE = 3, DUP2 = 33, EXECVE = 59, FCNTL = 72, CHDIR = 80, SETSID = 112, SETNS = 308,
       CLOSE_RANGE = 436, SIGACTION = 13 };
enum { NOT_VALID = 22, WRITE_ONLY = 1, CLOSE_ON_EXEC = 02000000, DUPLICATE_FROM = 1030, BROKEN_PIPE = 13 };
/* Bytes of a report's action at most: of a longer one, its end. */
enum { FAILED = 127, MOST_ACTION = 200 };

/* Where a fault is reported: nowhere until it is known. */
extern long report_to;

/* Make a system call; the result is a negative error number for a fault. */
long call(long number, long a, long b, long c, long d, long e, long f);

#define CALL(number, a, b, c) call(number, (long)(a), (long)(b), (long)(c), 0, 0, 0)

void leave(int status);
long length(char *text);
/* Copy a text with its zero byte, and return the place of that byte. */
char *append(char *to, char *text);
/* Return the result of a call; end, with the action in the report, if it failed. */
long check(long result, char *action);
long parse_number(char *text);
long open_file(char *path, long flags);
/* Write a text to a file of the kernel. */
void write_file(char *path, char *text, char *action);

/* The two other programs of this file: start.c. */
void start(char **words, char **environment);
void limit(char **words);
