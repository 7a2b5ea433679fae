/* Puts the clocks of a process wrong as a file says, for rows of the fault matrix. Loaded before libc (LD_PRELOAD).
 *
 * EVENT_BUS_CLOCK names a file of three 64-bit numbers: nanoseconds to add to the wall clock, nanoseconds to add to the
 * boot-time clock (a suspension: the monotonic clock stands still meanwhile), and by how many millionths all three run too
 * fast from the start of the process on. CLOCK_MONOTONIC_RAW stays right: histories are written by it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct wrong { volatile long long wall, boot, millionths; };

static struct wrong right;
static struct wrong *wrong = &right;
static long long born;

static long long nanos(clockid_t id)
{
    struct timespec now;
    if (syscall(SYS_clock_gettime, id, &now) != 0)
        return 0;
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

__attribute__((constructor)) static void begin(void)
{
    const char *name = getenv("EVENT_BUS_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *map = mmap(0, sizeof right, PROT_READ, MAP_SHARED, file, 0);
        if (map != MAP_FAILED)
            wrong = map;
        close(file);
    }
    born = nanos(CLOCK_MONOTONIC_RAW);
}

int clock_gettime(clockid_t id, struct timespec *now)
{
    if (syscall(SYS_clock_gettime, id, now) != 0)
        return -1;
    long long more = (nanos(CLOCK_MONOTONIC_RAW) - born) / 1000 * wrong->millionths / 1000;
    switch (id) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        more += wrong->wall;
        break;
    case CLOCK_BOOTTIME:
        more += wrong->boot;
        break;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
        break;
    default:
        return 0;
    }
    more += now->tv_sec * 1000000000LL + now->tv_nsec;
    now->tv_sec = more / 1000000000LL;
    now->tv_nsec = more % 1000000000LL;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec wall;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &wall);
    if (now) {
        now->tv_sec = wall.tv_sec;
        now->tv_usec = wall.tv_nsec / 1000;
    }
    return 0;
}

time_t time(time_t *now)
{
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    if (now)
        *now = wall.tv_sec;
    return wall.tv_sec;
}
