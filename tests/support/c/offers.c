/* offers SOCKET MILLISECONDS [PAGES [COUNT]]: offers its memory by wetink_offer.h, or PAGES pages of it COUNT times over.
 *
 * Prints "ready RESULT ERRNO MILLISECONDS DESCRIPTORS SAID" with the time it took and by how many descriptors more are
 * open than before, and waits for the end of its input. With MILLISECONDS 0 it does not offer.
 */
#include "wetink_offer.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/mman.h>

static int descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	int count = 0;
	while (readdir(directory))
		count++;
	closedir(directory);
	return count;
}

int main(int count, char **words)
{
	struct wetink_region regions[WETINK_REGIONS_MAX + 1];
	const int milliseconds = count > 2 ? atoi(words[2]) : 0;
	const size_t size_bytes = count > 3 ? 4096 * (size_t)atoi(words[3]) : 0, times = count > 4 ? (size_t)atoi(words[4]) : 1;
	char said[512] = "nothing", byte;
	const int before = descriptors();
	int result = 0;
	for (size_t i = 0; size_bytes && i < times; i++) {
		regions[i].size_bytes = size_bytes;
		regions[i].start = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		memset(regions[i].start, 1, size_bytes);
	}
	const long began = wetink_now();
	errno = 0;
	if (milliseconds)
		result = wetink_offer(words[1], regions, size_bytes ? times : 0, milliseconds, said, sizeof said);
	printf("ready %d %d %ld %d %s\n", result, errno, wetink_now() - began, descriptors() - before, said);
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		continue;
	return 0;
}
