# A 32-bit process without any library: says ready, and answers each line of standard input with "here".
	.globl _start
_start:
	mov $4, %eax
	mov $1, %ebx
	mov $ready, %ecx
	mov $6, %edx
	int $0x80
next:
	mov $3, %eax
	xor %ebx, %ebx
	mov $byte, %ecx
	mov $1, %edx
	int $0x80
	cmp $1, %eax
	jne over
	cmpb $10, byte
	jne next
	mov $4, %eax
	mov $1, %ebx
	mov $here, %ecx
	mov $5, %edx
	int $0x80
	jmp next
over:
	mov $1, %eax
	xor %ebx, %ebx
	int $0x80
ready:	.ascii "ready\n"
here:	.ascii "here\n"
	.data
byte:	.byte 0
