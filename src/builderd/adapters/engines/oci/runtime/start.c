/* Start a program in a mount namespace of its own, or limit a user namespace: children of the launcher that copy none of
 * its pages. The words are checked by the launcher; a fault is reported as "failed NUMBER ACTION".
 *
 * `start REPORT FOLDER OOM_SCORE TERMINAL`, then three lists, each begun by its length: files of control groups; mounts of
 * five words (kind, target, source, attributes or flags, user namespace or data); pairs of a number and the descriptor
 * that it gets. Then the program's words. Its environment is this program's own.
 *
 * `limit NAMESPACE FILE VALUE…`: write values to files of the kernel from within a user namespace.
 */

#include "join.h"

/* arch/x86/entry/syscalls/syscall_64.tbl */
enum { MOUNT = 165, UMOUNT = 166, UNSHARE = 272, OPEN_TREE = 428, MOVE_MOUNT = 429, MOUNT_SETATTR = 442, IOCTL = 16 };
/* include/uapi: linux/mount.h, linux/fcntl.h, linux/close_range.h, linux/sched.h, asm-generic/ioctls.h */
enum {
  TREE_CLONE = 1, FROM_EMPTY_PATH = 4, EMPTY_PATH = 0x1000, IDMAP = 0x100000, DETACH = 2, FROM_CURRENT_FOLDER = -100,
  RANGE_CLOSE_ON_EXEC = 4, NEW_MOUNTS = 0x20000, NEW_USERS = 0x10000000, CONTROL_TERMINAL = 0x540E, READ_WRITE = 2
};
enum { STREAMS = 3, ASIDE = 64, MOST_DESCRIPTORS = 16 };

struct attributes { unsigned long set, clear, propagation, user_namespace; };

static char **at;

static char *next(void) {
  if (!*at) check(-NOT_VALID, "read the words");
  return *at++;
}

static long next_number(void) {
  return parse_number(next());
}

static int is(char *text, char *other) {
  while (*text && *text == *other) text++, other++;
  return *text == *other;
}

/* As `check`, with a path after the words of the action: of a long one, its end. */
static long check_at(long result, char *action, char *path) {
  char text[MOST_ACTION + 1];
  long most = MOST_ACTION - length(action);
  if (result >= 0) return result;
  if (length(path) > most) path += length(path) - most;
  append(append(text, action), path);
  return check(result, text);
}

static void bind(char *target, char *source, char *attributes, char *namespace) {
  struct attributes wanted = {parse_number(attributes), 0, 0, 0};
  long tree = check_at(CALL(OPEN_TREE, FROM_CURRENT_FOLDER, source, TREE_CLONE | CLOSE_ON_EXEC), "open ", source);
  if (*namespace) {
    wanted.set |= IDMAP;
    wanted.user_namespace = parse_number(namespace);
  }
  check_at(
    call(MOUNT_SETATTR, tree, (long)"", EMPTY_PATH, (long)&wanted, sizeof wanted, 0), "set attributes of ", source);
  check_at(
    call(MOVE_MOUNT, tree, (long)"", FROM_CURRENT_FOLDER, (long)target, FROM_EMPTY_PATH, 0), "bind on ", target);
  CALL(CLOSE, tree, 0, 0);
}

static void make_mount(void) {
  char *kind = next(), *target = next(), *source = next(), *flags = next(), *last = next();
  if (is(kind, "bind")) bind(target, source, flags, last);
  else if (is(kind, "detach")) check_at(CALL(UMOUNT, target, DETACH, 0), "unmount ", target);
  else
    check_at(
      call(MOUNT, (long)kind, (long)target, (long)kind, parse_number(flags), *last ? (long)last : 0, 0), "mount on ", target);
}

static void make_mounts(void) {
  long count = next_number();
  if (count) check(CALL(UNSHARE, NEW_MOUNTS, 0, 0), "unshare");
  while (count-- > 0) make_mount();
}

/* Give the program its descriptors, and /dev/null for standard streams that are not among them. All go out of the way
 * first and then into place, so that none overwrites another. */
static void place_descriptors(void) {
  long numbers[MOST_DESCRIPTORS], aside[MOST_DESCRIPTORS], null, count = next_number(), one, stream, given;
  if (count > MOST_DESCRIPTORS - STREAMS) check(-NOT_VALID, "read the words");
  for (one = 0; one < count; one++) {
    numbers[one] = next_number();
    aside[one] = check(CALL(FCNTL, next_number(), DUPLICATE_FROM, ASIDE), "take a descriptor");
  }
  null = check(open_file("/dev/null", READ_WRITE), "/dev/null");
  for (stream = 0; stream < STREAMS; stream++) {
    for (given = one = 0; one < count; one++) given |= numbers[one] == stream;
    if (given) continue;
    numbers[count] = stream;
    aside[count++] = check(CALL(FCNTL, null, DUPLICATE_FROM, ASIDE), "take a descriptor");
  }
  report_to = check(CALL(FCNTL, report_to, DUPLICATE_FROM, ASIDE), "take a descriptor");
  for (one = 0; one < count; one++) check(CALL(DUP2, aside[one], numbers[one], 0), "place a descriptor");
}

void start(char **words, char **environment) {
  long action[4] = {0, 0, 0, 0}, count, terminal;
  char *folder, *score;
  at = words;
  report_to = next_number();
  check(CALL(CLOSE_RANGE, STREAMS, ~0U, RANGE_CLOSE_ON_EXEC), "close descriptors");
  folder = next();
  score = next();
  terminal = next_number();
  check(CALL(SETSID, 0, 0, 0), "begin a session");
  check(call(SIGACTION, BROKEN_PIPE, (long)action, 0, 8, 0, 0), "heed SIGPIPE");
  for (count = next_number(); count > 0; count--) {
    char *group = next();
    write_file(group, "0", group);
  }
  if (!is(score, "0")) write_file("/proc/self/oom_score_adj", score, "/proc/self/oom_score_adj");
  make_mounts();
  check(CALL(CHDIR, folder, 0, 0), folder);
  place_descriptors();
  if (terminal) check(CALL(IOCTL, 0, CONTROL_TERMINAL, 0), "control the terminal");
  check(CALL(EXECVE, *at ? *at : "", at, environment), *at ? *at : "");
}

void limit(char **words) {
  at = words;
  check(CALL(SETNS, next_number(), NEW_USERS, 0), "enter the user namespace");
  while (*at) {
    char *file = next();
    write_file(file, next(), file);
  }
  leave(0);
}
