/* stub_aarch64 FILE REGISTERS_OFFSET PATTERN MASK FLAGS CALL: runs a stub as a thread would that was lent, and looks at all it
 * has afterwards. Says "whole", or what is not. For aarch64.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

uint64_t found[31 + 1 + 64] __attribute__((aligned(16))); /* x0 to x30, one for alignment, then q0 to q31 */
static uint64_t pattern, mask;

/* Where the thread "was": its stack is the array, so that no register is needed to save the others. */
__asm__(".text\n.globl landing\nlanding:\n"
	"stp x0, x1, [sp, #0]\nstp x2, x3, [sp, #16]\nstp x4, x5, [sp, #32]\nstp x6, x7, [sp, #48]\n"
	"stp x8, x9, [sp, #64]\nstp x10, x11, [sp, #80]\nstp x12, x13, [sp, #96]\nstp x14, x15, [sp, #112]\n"
	"stp x16, x17, [sp, #128]\nstp x18, x19, [sp, #144]\nstp x20, x21, [sp, #160]\nstp x22, x23, [sp, #176]\n"
	"stp x24, x25, [sp, #192]\nstp x26, x27, [sp, #208]\nstp x28, x29, [sp, #224]\nstr x30, [sp, #240]\n"
	"stp q0, q1, [sp, #256]\nstp q2, q3, [sp, #288]\nstp q4, q5, [sp, #320]\nstp q6, q7, [sp, #352]\n"
	"stp q8, q9, [sp, #384]\nstp q10, q11, [sp, #416]\nstp q12, q13, [sp, #448]\nstp q14, q15, [sp, #480]\n"
	"stp q16, q17, [sp, #512]\nstp q18, q19, [sp, #544]\nstp q20, q21, [sp, #576]\nstp q22, q23, [sp, #608]\n"
	"stp q24, q25, [sp, #640]\nstp q26, q27, [sp, #672]\nstp q28, q29, [sp, #704]\nstp q30, q31, [sp, #736]\n"
	"adrp x1, stack\nadd x1, x1, :lo12:stack\nadd sp, x1, #16, lsl #12\nb look\n");
char stack[16 << 12] __attribute__((aligned(4096)));
extern char landing[];

void look(void)
{
	sigset_t set;
	uint64_t blocked = 0;
	for (uint64_t i = 0; i < 31; i++)
		if (found[i] != pattern + i)
			printf("x%d is %#lx\n", (int)i, (unsigned long)found[i]), exit(1);
	for (int i = 0; i < 512; i++)
		if (((unsigned char *)&found[32])[i] != (i * 7 & 0xff))
			printf("byte %d of the floating-point registers\n", i), exit(1);
	sigprocmask(SIG_BLOCK, NULL, &set);
	memcpy(&blocked, &set, sizeof blocked);
	if (blocked != mask)
		printf("the mask is %#lx\n", (unsigned long)blocked), exit(1);
	printf("whole\n");
	exit(0);
}

int main(int count, char **words)
{
	FILE *file = fopen(words[1], "rb");
	char *room = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (count < 7 || !file || room == MAP_FAILED || !fread(room, 1, 8192, file))
		return 2;
	uint64_t *registers = (uint64_t *)(room + atoi(words[2]));
	pattern = strtoull(words[3], NULL, 10);
	mask = strtoull(words[4], NULL, 10);
	registers[31] = (uint64_t)found;
	registers[32] = (uint64_t)landing;
	__builtin___clear_cache(room, room + 8192);
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	register uint64_t x0 __asm__("x0") = strtoull(words[5], NULL, 10);
	register uint64_t x8 __asm__("x8") = strtoull(words[6], NULL, 10);
	register char *x1 __asm__("x1") = room;
	__asm__ volatile("br x1" : : "r"(x0), "r"(x8), "r"(x1) : "memory");
	return 3;
}
