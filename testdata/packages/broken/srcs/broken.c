#include <stdio.h>

int main(void)
{
	puts("this line lacks its end")
	return 0;
}
