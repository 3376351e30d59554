/* Start one program in a running sandbox, as `crun exec` does.
 *
 * The launcher executes this with six numbers of descriptors: the program's three streams, its report, its document,
 * and the pipe that gets the program's pid. The document is texts, each ended by a zero byte: pid and start time of the
 * sandbox's first process, the program's OOM score, files and user, the filter's path, the folder; then three lists,
 * each begun by its length: files of control groups, arguments, environment.
 *
 * A process that the sandbox can see is in all of its namespaces, cannot be traced from there, and has no descriptor of
 * the host but pipes and, at first, the lists of the sandbox's own control groups.
 *
 * The report gets READY just before the program is executed. A fault follows it or comes in its place: "ended",
 * "folder", or "failed NUMBER ACTION" with an error number of errno(3), 0 for none.
 *
 * For x86-64, without a C library: each page that a library would touch costs time. `joiner.py` compiles it, with the
 * launcher's other two programs (start.c) in the same file.
 */

#include "join.h"

/* arch/x86/entry/syscalls/syscall_64.tbl */
enum {
  READ = 0, LSEEK = 8, MMAP = 9, UMASK = 95, SETGROUPS = 116, SETRESUID = 117, SETRESGID = 119, CAPSET = 126,
  PRCTL = 157, SETRLIMIT = 160, EXIT_GROUP = 231, DUP3 = 292, SECCOMP = 317, PIDFD_OPEN = 434, CLONE3 = 435
};
/* include/uapi/asm-generic */
enum {
  NO_ENTRY = 2, NO_PROCESS = 3, NO_DEVICE = 19, SEEK_TO_END = 2, MAY_READ = 1, MAY_WRITE = 2, MAP_PRIVATE = 2,
  MAP_ANONYMOUS = 32, FILE_TOO_LARGE = 25, LIMIT_CORE = 4, LIMIT_FILES = 7
};
/* include/uapi/linux: prctl.h, capability.h, seccomp.h */
enum {
  SET_DUMPABLE = 4, DROP_FROM_BOUNDING_SET = 24, SET_NO_NEW_PRIVILEGES = 38, AMBIENT = 47, CLEAR_AMBIENT = 4,
  CAPABILITIES_VERSION = 0x20080522, SET_MODE_FILTER = 1, ALLOW_SPECULATION = 4
};
/* include/uapi/linux/sched.h: of time, mounts, control groups, host names, IPC, users, pids, networks. */
#define ALL_NAMESPACES 0x7e020080L
#define CLONE_PARENT 0x8000

/* Descriptors once they are in their places. */
enum { STREAMS = 3, REPORT = 3, DOCUMENT = 4, ANSWER = 5, GIVEN = 6, ASIDE = 16 };
enum { MOST_GROUPS = 64, MOST_RULES = 4096, RULE = 8, STAT_BYTES = 4096, START_TIME = 19 };

struct limit { unsigned long soft, hard; };
struct capabilities { unsigned version; int pid; };
struct rules { unsigned short count; char *first; };

struct prepared {
  long target, files, user, group_count;
  int groups[MOST_GROUPS];
  char *folder, **arguments, **environment;
  struct rules rules;
};

/* The rest of the document. */
static char *at, *end;
long report_to = -1;
static char filter[MOST_RULES * RULE + 1];

__asm__(
  ".globl call\n"
  "call:\n"
  "  movq %rdi, %rax\n"
  "  movq %rsi, %rdi\n"
  "  movq %rdx, %rsi\n"
  "  movq %rcx, %rdx\n"
  "  movq %r8, %r10\n"
  "  movq %r9, %r8\n"
  "  movq 8(%rsp), %r9\n"
  "  syscall\n"
  "  ret\n"
  ".globl _start\n"
  "_start:\n"
  "  movq %rsp, %rdi\n"
  "  andq $-16, %rsp\n"
  "  call begin\n"
  "  hlt\n");

void leave(int status) {
  for (;;) CALL(EXIT_GROUP, status, 0, 0);
}

long length(char *text) {
  long size = 0;
  while (text[size]) size++;
  return size;
}

char *append(char *to, char *text) {
  while (*text) *to++ = *text++;
  *to = 0;
  return to;
}

static char *append_number(char *to, long number) {
  char digits[24];
  int count = 0;
  do digits[count++] = '0' + number % 10;
  while (number /= 10);
  while (count) *to++ = digits[--count];
  *to = 0;
  return to;
}

static void write_to(long descriptor, char *text) {
  CALL(WRITE, descriptor, text, length(text));
}

/* Report a fault of this kind, and end. */
static void give_up(char *kind) {
  write_to(report_to, kind);
  leave(FAILED);
}

long check(long result, char *action) {
  char text[256];
  if (result >= 0) return result;
  /* The end of a long path says most. */
  if (length(action) > MOST_ACTION) action += length(action) - MOST_ACTION;
  append(append(append_number(append(text, "failed "), -result), " "), action);
  give_up(text);
  return 0;
}

long parse_number(char *text) {
  long number = 0;
  if (!*text) check(-NOT_VALID, "read a number");
  for (; *text; text++) {
    if (*text < '0' || *text > '9' || number > 1L << 58) check(-NOT_VALID, "read a number");
    number = number * 10 + (*text - '0');
  }
  return number;
}

/* Put what was given to its places, and close everything else. */
static void take_descriptors(char **numbers) {
  long aside[GIVEN];
  int one;
  report_to = parse_number(numbers[REPORT]);
  for (one = 0; one < GIVEN; one++)
    aside[one] = check(CALL(FCNTL, parse_number(numbers[one]), DUPLICATE_FROM, ASIDE), "take a descriptor");
  report_to = aside[REPORT];
  for (one = 0; one < GIVEN; one++)
    check(one < STREAMS ? CALL(DUP2, aside[one], one, 0) : CALL(DUP3, aside[one], one, CLOSE_ON_EXEC), "place a descriptor");
  report_to = REPORT;
  check(CALL(CLOSE_RANGE, GIVEN, ~0U, 0), "close descriptors");
}

static void open_document(void) {
  long size = check(CALL(LSEEK, DOCUMENT, 0, SEEK_TO_END), "measure the document");
  at = (char *)check(call(MMAP, 0, size, MAY_READ, MAP_PRIVATE, DOCUMENT, 0), "read the document");
  end = at + size;
  if (end[-1]) check(-NOT_VALID, "read the document");
  CALL(CLOSE, DOCUMENT, 0, 0);
}

/* Return the document's next text. */
static char *next(void) {
  char *text = at;
  if (at >= end) check(-NOT_VALID, "read the document");
  at += length(text) + 1;
  return text;
}

static long next_number(void) {
  return parse_number(next());
}

/* Return the document's next list, ended by a null pointer. */
static char **next_list(void) {
  long count = next_number(), one;
  char **list;
  if (count > end - at) check(-NOT_VALID, "read the document");
  list = (char **)check(
    call(MMAP, 0, (count + 1) * sizeof(char *), MAY_READ | MAY_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "get memory");
  for (one = 0; one < count; one++) list[one] = next();
  return list;
}

long open_file(char *path, long flags) {
  return CALL(OPEN, path, flags | CLOSE_ON_EXEC, 0);
}

void write_file(char *path, char *text, char *action) {
  long file = check(open_file(path, WRITE_ONLY), action);
  check(CALL(WRITE, file, text, length(text)), action);
  CALL(CLOSE, file, 0, 0);
}

/* Read a whole file of at most `most` bytes, and return their number. */
static long read_file(long descriptor, char *to, long most, char *action) {
  long size = 0, piece;
  while ((piece = check(CALL(READ, descriptor, to + size, most - size), action))) size += piece;
  CALL(CLOSE, descriptor, 0, 0);
  return size;
}

/* Return the start time of a process in clock ticks (proc(5)); 0 when it is gone. */
static long started(long pid) {
  char path[64], stat[STAT_BYTES], *field, *last = 0;
  long file, size, space = 0;
  append(append_number(append(path, "/proc/"), pid), "/stat");
  file = open_file(path, 0);
  if (file < 0) return 0;
  size = CALL(READ, file, stat, STAT_BYTES - 1);
  CALL(CLOSE, file, 0, 0);
  if (size <= 0) return 0;
  stat[size] = 0;
  /* Its name may hold anything but ends at the last bracket. */
  for (field = stat; *field; field++)
    if (*field == ')') last = field;
  if (!last) return 0;
  for (field = last; *field && space <= START_TIME; field++) space += *field == ' ';
  for (last = field; *last && *last != ' '; last++) {}
  *last = 0;
  return parse_number(field);
}

static void find_target(struct prepared *to) {
  long pid = next_number(), start = next_number();
  to->target = CALL(PIDFD_OPEN, pid, 0, 0);
  if (to->target == -NO_PROCESS) give_up("ended");
  check(to->target, "find the sandbox");
  /* Behind the pidfd: from now on the pid cannot become another process's without the join failing. */
  if (started(pid) != start) give_up("ended");
}

static void set_limits(struct prepared *to) {
  struct limit files, core = {0, 0};
  write_file("/proc/self/oom_score_adj", next(), "set oom_score_adj");
  files.soft = files.hard = next_number();
  check(CALL(SETRLIMIT, LIMIT_FILES, &files, 0), "limit files");
  check(CALL(SETRLIMIT, LIMIT_CORE, &core, 0), "limit core dumps");
  to->user = next_number();
}

static void read_filter(struct prepared *to) {
  char *path = next(), text[256], *rest;
  long size = read_file(check(open_file(path, 0), "open the filter"), filter, sizeof filter, "read the filter");
  if (!size || size % RULE || size > MOST_RULES * RULE) {
    rest = append(text, "failed 0 ");
    if (length(path) < 200) rest = append(rest, path);
    append(rest, " holds no filter");
    give_up(text);
  }
  to->rules.count = size / RULE;
  to->rules.first = filter;
}

static void open_groups(struct prepared *to) {
  char **paths = next_list();
  for (to->group_count = 0; paths[to->group_count]; to->group_count++) {
    long group = to->group_count < MOST_GROUPS ? open_file(paths[to->group_count], WRITE_ONLY) : -NOT_VALID;
    if (group == -NO_ENTRY) give_up("ended");
    to->groups[to->group_count] = check(group, "open a control group");
  }
  if (!to->group_count) check(-NOT_VALID, "read the document");
}

/* Signals that Python ignores get their default action again; the launcher has the defaults of all others. */
static void heed_signals(void) {
  long action[4] = {0, 0, 0, 0};
  check(call(SIGACTION, BROKEN_PIPE, (long)action, 0, 8, 0, 0), "heed SIGPIPE");
  check(call(SIGACTION, FILE_TOO_LARGE, (long)action, 0, 8, 0, 0), "heed SIGXFSZ");
}

/* Read all that is needed of the host. */
static void prepare(struct prepared *to) {
  heed_signals();
  open_document();
  find_target(to);
  set_limits(to);
  read_filter(to);
  to->folder = next();
  open_groups(to);
  to->arguments = next_list();
  to->environment = next_list();
  if (at != end || !to->arguments[0]) check(-NOT_VALID, "read the document");
}

/* Enter all namespaces of the sandbox; its pid namespace holds for children. */
static void enter(long target) {
  long result = CALL(SETNS, target, ALL_NAMESPACES, 0);
  if (result == -NO_PROCESS) give_up("ended");
  check(result, "enter the sandbox");
  CALL(CLOSE, target, 0, 0);
}

/* Begin a child of the launcher, and in this process tell its pid and end. */
static void clone_beside(void) {
  long arguments[8] = {CLONE_PARENT, 0, 0, 0, 0, 0, 0, 0}, pid;
  char text[24];
  pid = check(CALL(CLONE3, arguments, sizeof arguments, 0), "clone");
  if (pid) {
    append_number(text, pid);
    write_to(ANSWER, text);
    leave(0);
  }
  CALL(CLOSE, ANSWER, 0, 0);
}

static void enter_groups(struct prepared *from) {
  long one;
  for (one = 0; one < from->group_count; one++) {
    long result = CALL(WRITE, from->groups[one], "0", 1);
    if (result == -NO_DEVICE) give_up("ended");
    check(result, "enter a control group");
    CALL(CLOSE, from->groups[one], 0, 0);
  }
}

/* No process without a capability of the host's reads this one's memory, files or program. */
static void forbid_tracing(void) {
  check(CALL(PRCTL, SET_DUMPABLE, 0, 0), "forbid tracing");
}

static void empty_bounding_set(void) {
  long capability, result;
  for (capability = 0; capability < 64; capability++) {
    result = CALL(PRCTL, DROP_FROM_BOUNDING_SET, capability, 0);
    /* The kernel knows no more. */
    if (result == -NOT_VALID && capability) return;
    check(result, "limit capabilities");
  }
}

static void drop_rights(long user) {
  struct capabilities header = {CAPABILITIES_VERSION, 0};
  unsigned none[6] = {0, 0, 0, 0, 0, 0};
  check(CALL(SETGROUPS, 0, 0, 0), "leave all groups");
  empty_bounding_set();
  check(CALL(SETRESGID, user, user, user), "become the group");
  check(CALL(SETRESUID, user, user, user), "become the user");
  /* With another user the kernel has set it to fs.suid_dumpable. The capabilities kept the sandbox off meanwhile. */
  forbid_tracing();
  check(CALL(CAPSET, &header, none, 0), "give up capabilities");
  check(CALL(PRCTL, AMBIENT, CLEAR_AMBIENT, 0), "give up ambient capabilities");
}

/* Enter the groups, give up all rights, and execute the program. */
static void become(struct prepared *from) {
  enter_groups(from);
  check(CALL(SETSID, 0, 0, 0), "begin a session");
  CALL(UMASK, 022, 0, 0);
  drop_rights(from->user);
  if (CALL(CHDIR, from->folder, 0, 0) < 0) give_up("folder");
  check(CALL(PRCTL, SET_NO_NEW_PRIVILEGES, 1, 0), "give up new privileges");
  /* To a pipe that nobody reads any more, this ends the process: a command that was given up never begins. */
  check(CALL(WRITE, REPORT, "+", 1), "report");
  check(CALL(SECCOMP, SET_MODE_FILTER, ALLOW_SPECULATION, &from->rules), "filter system calls");
  check(CALL(EXECVE, from->arguments[0], from->arguments, from->environment), "execute the program");
}

void begin(long *stack) {
  static struct prepared prepared;
  char **words = (char **)stack + 2;
  forbid_tracing();
  if (stack[0] > 1 && words[0][0] == 's') start(words + 1, words + stack[0]);
  if (stack[0] > 1 && words[0][0] == 'l') limit(words + 1);
  if (stack[0] != 1 + GIVEN) leave(FAILED);
  take_descriptors(words);
  prepare(&prepared);
  enter(prepared.target);
  clone_beside();
  become(&prepared);
}
