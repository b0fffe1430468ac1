// SPDX-License-Identifier: GPL-2.0
/*
 * load - sends direct I/O of 4 KiB, one after the other from each of its threads,
 * and prints how long tasks ran on all processors meanwhile, and how long it took,
 * both in ns per I/O.
 *
 *	load PATH r|w FIRST COUNT THREADS
 *
 * The places are the COUNT blocks from block FIRST on, each once, in an order that
 * jumps about; each thread, on a processor of its own, has its part of them. Both
 * numbers are powers of two. Starting up isn't measured; that's why this is not fio.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096

static int fd, writes;
static long first, each;
static pthread_barrier_t ready, done;

/* CPU time of all tasks since boot, in ns: a field of each processor's line. */
static long long ran(void)
{
	char line[512];
	long long total = 0, one;
	FILE *f = fopen("/proc/schedstat", "r");

	if (!f)
		err(1, "/proc/schedstat");
	while (fgets(line, sizeof(line), f))
		if (!strncmp(line, "cpu", 3) &&
		    sscanf(line, "%*s %*s %*s %*s %*s %*s %*s %lld", &one) == 1)
			total += one;
	fclose(f);
	return total;
}

static long long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *job(void *number)
{
	long me = (long)number, i, place = 0;
	cpu_set_t set;
	void *block;

	CPU_ZERO(&set);
	CPU_SET(me, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "processor %ld", me);
	if (posix_memalign(&block, BLOCK, BLOCK))
		errx(1, "no memory");
	memset(block, 7, BLOCK);
	pthread_barrier_wait(&ready);
	for (i = 0; i < each; i++) {
		off_t at = (first + me * each + place) * BLOCK;
		ssize_t n = writes ? pwrite(fd, block, BLOCK, at) : pread(fd, block, BLOCK, at);

		if (n != BLOCK)
			err(1, "I/O at %lld", (long long)at);
		/* With these factors it comes by all places before it repeats. */
		place = (place * 0x5851f42dUL + 0x14057b7fUL) & (each - 1);
	}
	pthread_barrier_wait(&done);
	return NULL;
}

int main(int argc, char **argv)
{
	long long cpu, wall;
	long threads, count, i;
	pthread_t id;

	if (argc != 6)
		errx(1, "usage: load PATH r|w FIRST COUNT THREADS");
	writes = argv[2][0] == 'w';
	first = atol(argv[3]);
	count = atol(argv[4]);
	threads = atol(argv[5]);
	each = count / threads;
	fd = open(argv[1], O_RDWR | O_DIRECT);
	if (fd < 0)
		err(1, "%s", argv[1]);
	pthread_barrier_init(&ready, NULL, threads + 1);
	pthread_barrier_init(&done, NULL, threads + 1);
	for (i = 0; i < threads; i++)
		if (pthread_create(&id, NULL, job, (void *)i))
			errx(1, "no thread");
	cpu = ran();
	wall = now();
	pthread_barrier_wait(&ready);
	pthread_barrier_wait(&done);
	wall = now() - wall;
	cpu = ran() - cpu;
	printf("%lld %lld\n", cpu / count, wall / count);
	return 0;
}
