// Package tinyelf makes the smallest programs that can run: static ELF files of
// some 100 bytes that do nothing but end with status 0. Running one is the only
// sure answer to "does this machine run programs of that architecture?", and to
// "does this container runtime work here?", without a base or a compiler.
package tinyelf

import (
	"encoding/binary"
	"fmt"
)

// Machine is how ELF tells one architecture from another.
type Machine struct {
	Bits int    // 32 or 64
	Big  bool   // big-endian
	EM   uint16 // e_machine, e.g. 62 for x86_64
}

// machines by uname -m name. Sources: elf.h of glibc and the tables of
// qemu-binfmt-conf.sh. i386 to i686 are one machine to ELF.
var machines = map[string]Machine{
	"x86_64":      {64, false, 62},
	"i386":        {32, false, 3},
	"i486":        {32, false, 3},
	"i586":        {32, false, 3},
	"i686":        {32, false, 3},
	"aarch64":     {64, false, 183},
	"armv5tel":    {32, false, 40},
	"armv6l":      {32, false, 40},
	"armv7l":      {32, false, 40},
	"riscv32":     {32, false, 243},
	"riscv64":     {64, false, 243},
	"ppc":         {32, true, 20},
	"ppc64":       {64, true, 21},
	"ppc64le":     {64, false, 21},
	"s390x":       {64, true, 22},
	"mips":        {32, true, 8},
	"mipsel":      {32, false, 8},
	"mips64":      {64, true, 8},
	"mips64el":    {64, false, 8},
	"loongarch64": {64, false, 258},
	"sparc64":     {64, true, 43},
	"alpha":       {64, false, 0x9026},
	"m68k":        {32, true, 4},
	"parisc":      {32, true, 15},
	"sh4":         {32, false, 42},
}

// Of returns the machine of an arch as uname -m prints it. ok is false for an
// arch that this table has not heard of.
func Of(arch string) (Machine, bool) {
	m, ok := machines[arch]
	return m, ok
}

// code that makes the exit system call with status 0.
var code = map[uint16][]byte{
	62:  {0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05},                              // xor edi,edi; mov eax,60; syscall
	3:   {0x31, 0xdb, 0xb8, 1, 0, 0, 0, 0xcd, 0x80},                               // xor ebx,ebx; mov eax,1; int 0x80
	183: {0x00, 0x00, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4}, // mov x0,#0; mov x8,#93; svc #0
	40:  {0x00, 0x00, 0xa0, 0xe3, 0x01, 0x70, 0xa0, 0xe3, 0x00, 0x00, 0x00, 0xef}, // mov r0,#0; mov r7,#1; svc #0
	243: {0x13, 0x05, 0x00, 0x00, 0x93, 0x08, 0xd0, 0x05, 0x73, 0x00, 0x00, 0x00}, // li a0,0; li a7,93; ecall
	258: {0x04, 0x00, 0x80, 0x03, 0x0b, 0x74, 0x81, 0x03, 0x00, 0x00, 0x2b, 0x00}, // ori a0,zero,0; ori a7,zero,93; syscall 0
	21:  {0x00, 0x00, 0x60, 0x38, 0x01, 0x00, 0x00, 0x38, 0x02, 0x00, 0x00, 0x44}, // li r3,0; li r0,1; sc (little-endian)
	22:  {0xa7, 0x29, 0x00, 0x00, 0x0a, 0x01},                                     // lghi %r2,0; svc 1
}

// Header is the beginning of an executable for m, as much of it as the
// binfmt_misc magics look at.
func (m Machine) Header() []byte { return m.build(nil)[:52] }

// Program returns an executable that ends with status 0. ok is false when its
// machine code is not known here.
func (m Machine) Program() (prog []byte, ok bool) {
	if m.EM == 21 && m.Big {
		return nil, false // its ABI wants function descriptors
	}
	c, ok := code[m.EM]
	if !ok {
		return nil, false
	}
	return m.build(c), true
}

func (m Machine) build(text []byte) []byte {
	var o binary.ByteOrder = binary.LittleEndian
	ei := byte(1)
	if m.Big {
		o, ei = binary.BigEndian, 2
	}
	const base = 0x400000
	if m.Bits == 64 {
		b := make([]byte, 64+56, 64+56+len(text))
		copy(b, []byte{0x7f, 'E', 'L', 'F', 2, ei, 1})
		o.PutUint16(b[16:], 2) // ET_EXEC
		o.PutUint16(b[18:], m.EM)
		o.PutUint32(b[20:], 1)
		o.PutUint64(b[24:], base+64+56) // entry
		o.PutUint64(b[32:], 64)         // program headers
		if m.EM == 21 {
			o.PutUint32(b[48:], 2) // ELFv2: the entry is code
		}
		o.PutUint16(b[52:], 64)
		o.PutUint16(b[54:], 56)
		o.PutUint16(b[56:], 1)
		o.PutUint16(b[58:], 64) // section header size, none used
		p := b[64:]
		o.PutUint32(p, 1)     // PT_LOAD
		o.PutUint32(p[4:], 5) // r-x
		o.PutUint64(p[16:], base)
		o.PutUint64(p[24:], base)
		o.PutUint64(p[32:], uint64(64+56+len(text)))
		o.PutUint64(p[40:], uint64(64+56+len(text)))
		o.PutUint64(p[48:], 0x1000)
		return append(b, text...)
	}
	b := make([]byte, 52+32, 52+32+len(text))
	copy(b, []byte{0x7f, 'E', 'L', 'F', 1, ei, 1})
	o.PutUint16(b[16:], 2)
	o.PutUint16(b[18:], m.EM)
	o.PutUint32(b[20:], 1)
	o.PutUint32(b[24:], base+52+32)
	o.PutUint32(b[28:], 52)
	if m.EM == 40 {
		o.PutUint32(b[36:], 0x05000000) // EABI 5
	}
	o.PutUint16(b[40:], 52)
	o.PutUint16(b[42:], 32)
	o.PutUint16(b[44:], 1)
	o.PutUint16(b[46:], 40)
	p := b[52:]
	o.PutUint32(p, 1)
	o.PutUint32(p[8:], base)
	o.PutUint32(p[12:], base)
	o.PutUint32(p[16:], uint32(52+32+len(text)))
	o.PutUint32(p[20:], uint32(52+32+len(text)))
	o.PutUint32(p[24:], 5)
	o.PutUint32(p[28:], 0x1000)
	return append(b, text...)
}

// Name says in words which machine it is: the arch, or the last by name of several
// that are the same to ELF, or the bare numbers.
func Name(m Machine) string {
	best := ""
	for arch, x := range machines {
		if x == m && (best == "" || arch > best) {
			best = arch
		}
	}
	if best == "" {
		return fmt.Sprintf("%d-bit ELF machine %d", m.Bits, m.EM)
	}
	return best
}
