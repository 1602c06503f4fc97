package explain

// In these patterns a place is FILE:LINE: or FILE:LINE:COLUMN:, as most compilers
// write it.
const place = `^(?:\[[^\]]*\]\s*)?[^\s:][^:]*:\d+(?:[.:]\d+)?(?:-[\d.]+)?: `

var compilerRules = []rule{
	{class: "format-security", worth: certain, words: words("-werror=format-security", "-werror,-wformat-security")},
	{class: "implicit-declaration", worth: certain, words: words("implicit declaration of function", "call to undeclared"), fits: re(`error: (?:implicit declaration of function|call to undeclared (?:library )?function) Q(\w+)`),
		hint: "Include the header that declares $1, or patch the source: newer compilers refuse what older ones guessed."},
	{class: "stricter-compiler", worth: certain, words: words("-wint-conversion", "-werror=int-conversion", "incompatible-pointer-types", "incompatible-function-pointer-types", "implicit-int", "return-mismatch"),
		fits: re(`error: .*\[-W(?:error=|error,-W)?(int-conversion|incompatible-(?:function-)?pointer-types|implicit-int|return-mismatch)\]`),
		hint: "Patch the source; until then -Wno-error=$1 in CFLAGS has it compile."},
	{class: "warning-as-error", worth: certain, words: words("[-werror"), fits: re(`error: .*\[-Werror(?:=|,-W)([\w+=-]+)\]`),
		hint: "Build without -Werror: most packages have --disable-werror, or put -Wno-error=$1 into CFLAGS."},
	{class: "compiler-crash", worth: certain, words: words("internal compiler error", "frontend command failed", "please submit a bug report", "unexpectedly panicked"),
		fits: re(`internal compiler error: |clang frontend command failed|PLEASE submit a bug report|error: the compiler unexpectedly panicked`)},
	{class: "compiler-option", worth: certain, words: words("unrecognized command", "unsupported option", "unknown argument", "bad value", "unknown target cpu"),
		fits: re(`error: (?:unrecognized command[- ]line option Q([^'’"]+)|unsupported option Q([^'’"]+)|unknown argument:? Q([^'’"]+)|bad value \(?Q\S+ for Q([^'’"]+))|error: unknown target CPU`),
		hint: "Take $1$2$3$4 out of CFLAGS or of the makefile: it is of another compiler, version or arch."},
	{class: "assembler", worth: certain, words: words("no such instruction", "unrecognized opcode", "unknown mnemonic", "invalid instruction", "selected processor does not support", "parser: instruction expected"),
		fits: re(`rror: (?:no such instruction|unrecognized opcode|unknown mnemonic|invalid instruction|selected processor does not support|parser: instruction expected)`)},
	{class: "compiler", worth: certain, words: words(" error:", " fatal error:", " error -"), fits: re(place + `(?:fatal )?error(?: -)?:?\s`)},
	{class: "compiler", worth: certain, words: words("error["), fits: re(`^error\[E\d+\]: `)},
	{class: "compiler", worth: certain, words: words(".go:"), fits: re(`^(?:vet: )?\S+\.go:\d+:\d+: `)},
	{class: "compiler", worth: likely, words: words("error: "), fits: re(`^Error: .*\(\d+\)|^Error: .* at \(1\)`)}, // gfortran, below the place
	{class: "compiler", worth: likely, words: words("fatal error: "), fits: re(`^(?:cc1(?:plus|obj)?|gcc|g\+\+|cc|c\+\+|clang(?:\+\+)?)(?:-\d+)?: fatal error: `)},
	{class: "compiler", worth: likely, words: words("unrecognized rule", "missing quote"), fits: re(`^\S+:\d+: (?:unrecognized rule|missing quote)`)}, // flex
}

var linkerRules = []rule{
	{class: "relocation", worth: certain, words: words("recompile with -fp", "against symbol", "text relocations"), fits: re(`recompile with -f(?:PIC|PIE|pic|pie)`)},
	{class: "undefined-reference", worth: certain, words: words("undefined reference to", "undefined symbol: ", "dso missing from"), fits: re(`(?:: |^)undefined reference to Q([^'’]+)|ld(?:\.lld)?: error: undefined symbol: (.*)|DSO missing from command line`),
		hint: "No library that is linked has $1$2: add its library to LIBS, after what uses it."},
	{class: "multiple-definition", worth: certain, words: words("multiple definition of", "duplicate symbol"), fits: re(`: multiple definition of Q([^'’]+)|error: duplicate symbol: (.*)`),
		hint: "$1$2 is defined twice: since GCC 10 a variable in a header needs extern; until it is patched, -fcommon in CFLAGS has it link."},
	{class: "wrong-arch", worth: certain, words: words("file in wrong format", "file format not recognized", "is incompatible with", "wrong elf class", "invalid elf image", "cannot execute binary file", "exec format error"),
		fits: re(`file in wrong format|ld: .*file format not recognized|error: \S+ is incompatible with|wrong ELF class|Invalid ELF image for this architecture|cannot execute binary file|[Ee]xec format error`)},
	{class: "shared-library", worth: certain, words: words("error while loading shared libraries"), fits: re(`error while loading shared libraries: ([^:\s]+)`),
		hint: "Add the package that has $1 to the needed dependencies; one that was just built needs LD_LIBRARY_PATH or an rpath."},
	{class: "shared-library", worth: certain, words: words("symbol lookup error", "' not found (required by"), fits: re(`: symbol lookup error: .*undefined symbol: (\S+)|: version Q(\S+?)Q not found \(required by`),
		hint: "A library is another one than the program was linked with: it lacks $1$2."},
	{class: "linker", worth: likely, words: words("ld returned", "linker command failed", "final link failed", "linking with"), fits: re(`^collect2: error: ld returned|^clang.*: error: linker command failed|ld.*: final link failed|^error: linking with`)},
}

var networkRules = []rule{
	{class: "network", worth: soft, words: words("could not resolve host", "couldn't resolve host", "unable to resolve host", "failed to resolve address", "name resolution", "name or service not known", "network is unreachable", "eai_again"),
		fits: re(`(?i)(?:could not|couldn't) resolve host:? Q?(\S*)|unable to resolve host address Q([^'’]+)|failed to resolve address for (\S+?):|temporary failure in name resolution|name or service not known|network is unreachable|getaddrinfo (?:EAI_AGAIN|ENOTFOUND) (\S+)`),
		hint: "The build tried to reach $1$2$3$4: put what it fetches into srcs/, or switch the download off; no build has a network."},
	{class: "network", worth: soft, words: words("attempt to load network entity", "dial tcp", "failed to connect to", "git command failed"), fits: re(`Attempt to load network entity (\S+)|: dial tcp: |: \(\d+\) Failed to connect to (\S+) port|Git command failed: \[.*Qclone`),
		hint: "The build tried to fetch $1$2: put it into srcs/, or into the needed dependencies; no build has a network."},
	{class: "network", worth: soft, words: words("could not find a version that satisfies"), fits: re(`ERROR: Could not find a version that satisfies the requirement (\S+)`),
		hint: "pip tried to fetch $1: add its package to the needed dependencies, and build with --no-build-isolation."},
	{class: "checksum", worth: certain, words: words("did not match", "hash mismatch", "checksum", "digest mismatch", "mismatch"),
		fits: re(`^(?:md5|sha\d+|b2)sum: WARNING: \d+ computed checksums? did NOT match|(?i)\b(?:hash|checksum|digest|sha256|sha512|md5)(?:sum)? (?:mismatch|does not match|verification failed|check failed)|verifying \S+: checksum mismatch`)},
}

var configureRules = []rule{
	{class: "clock", worth: certain, words: words("newly created file is older"), fits: re(`error: newly created file is older than distributed files`)},
	{class: "toolchain", worth: certain, words: words("compiler cannot create executables", "no acceptable c compiler", "cannot run c compiled programs", "compiler_id", "_compiler not set", "could not find compiler", "is not able to compile a simple test program"),
		fits: re(`error: \S+ compiler cannot create executables|error: no acceptable C compiler|error: cannot run C compiled programs|CMAKE_\S+_COMPILER not set|Could not find compiler set in|is not able to compile a simple test program`)},
	{class: "configure", worth: certain, words: words("configure: error:"), fits: re("configure: error: (?:[^i]|i[^n]|in[^ ])")}, // not the folder: in `/quarry/...':
	{class: "meson", worth: likely, words: words("error: "), fits: re(`^\S*meson\S*:\d+:\d+: ERROR: |^ERROR: .*meson`)},
	{class: "cmake", worth: likely, words: words("cmake error"), fits: re(`^CMake Error`)},
	{class: "configure", worth: weak, words: words("configuration failed", "configure failed"), fits: re(`(?i)^(?:the )?configur(?:e|ation) failed`)},
}

var testRules = []rule{
	{class: "test", worth: certain, words: words("fail: ", "error: ", "xpass: "), fits: re(`^(?:(?:FAIL|XPASS): (\S.*)|ERROR: (\S+(?: - .*| \(.*\))?)$)`), hint: "The test $1$2 failed: its own output is in the log or in its .log file."},
	{class: "test", worth: certain, words: words("not ok "), fits: re(`^\s*not ok \d+(?:\s*$|\s+-?\s*[^#]*$)`)},
	{class: "test", worth: certain, words: words("***failed", "***timeout", "***exception", "***not run"), fits: re(`Test +#\d+: (\S+) .*\*\*\*(?:Failed|Timeout|Exception|Not Run)`), hint: "The test $1 failed: ctest --output-on-failure shows what it printed."},
	{class: "test", worth: certain, words: words("failed ", "... failed"), fits: re(`^FAILED (\S+::\S+)|^test (\S+) \.\.\. FAILED`), hint: "The test $1$2 failed."},
	{class: "test", worth: certain, words: words("--- fail: "), fits: re(`^\s*--- FAIL: (\S+)`), hint: "The test $1 failed."},
	{class: "test", worth: certain, words: words(" fail ", "timeout"), fits: re(`^\s*\d+/\d+ (\S.*\S)\s+(?:FAIL|TIMEOUT)\s+\d`), hint: "The test $1 failed: meson test --print-errorlogs shows what it printed."},
	{class: "test", worth: likely, words: words("failed test"), fits: re(`^\s*#?\s+Failed test`)},
	{class: "test", worth: weak, words: words("tests failed", "test failed", "result: fail", "unexpected failures"), fits: re(`(?i)\b[1-9]\d* (?:of \d+ )?tests? failed|^Result: FAIL|^# of unexpected failures\s+[1-9]`)},
}

var makeRules = []rule{
	{class: "no-rule", worth: certain, words: words("no rule to make target"), fits: re(`\*\*\* No rule to make target Q([^'’]+)Q, needed by Q([^'’]+)Q`), hint: "$2 needs $1, which nothing makes: the file is missing in the sources, or its name in the makefile is wrong."},
	{class: "no-target", worth: certain, words: words("no rule to make target"), fits: re(`\*\*\* No rule to make target Q([^'’]+)Q\.`), hint: "The makefile has no target $1: name one that it has in the recipe."},
	{class: "makefile", worth: certain, words: words("no targets specified", "missing separator", "*** recipe commences", "*** unterminated", "*** multiple target patterns", "no targets.  stop"), fits: re(`\*\*\* (?:No targets|missing separator|[Rr]ecipe commences|unterminated|multiple target patterns)`)},
	{class: "missing-file", worth: certain, words: words("no such file or directory.  stop"), fits: re(`\*\*\* (\S+): No such file or directory\.  Stop`), hint: "The makefile goes into the folder $1, which is not there."},
}

var scriptRules = []rule{
	{class: "python-version", worth: certain, words: words("missing parentheses in call", "invalid syntax", "inconsistent use of tabs", "no module named 'configparser", "has_key"), fits: re(`^(?:SyntaxError: Missing parentheses in call to|TabError: inconsistent use of tabs|AttributeError: 'dict' object has no attribute 'has_key')`)},
	{class: "script", worth: certain, words: words("syntax error", "syntaxerror: "), fits: re(`: (?:line )?\d+: [Ss]yntax error|: syntax error near unexpected token|^SyntaxError: `)},
	{class: "script", worth: certain, words: words("unexpected eof while looking"), fits: re(`unexpected EOF while looking for matching`)},
	{class: "script", worth: certain, words: words("requires explicit package name", "syntax error at", "aborted due to compilation errors"), fits: re(` requires explicit package name .*at (\S+) line \d+|^syntax error at (\S+) line|of (\S+) aborted due to compilation errors`), hint: "The Perl script $1$2$3 does not compile: it may be for another Perl."},
	{class: "locale", worth: certain, words: words("unsupported locale setting"), fits: re(`locale\.Error: `)},
	{class: "encoding", worth: certain, words: words("unicodedecodeerror", "unicodeencodeerror", "illegal byte sequence"), fits: re(`^Unicode(?:De|En)codeError: |: [Ii]llegal byte sequence`)},
	{class: "exception", worth: likely, words: words("error: ", "exception: "), fits: re(`^(?:[a-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): `)},
	{class: "exception", worth: likely, words: words("exception in thread"), fits: re(`^Exception in thread "`)},
}

var systemRules = []rule{
	{class: "not-executable", worth: likely, words: words("permission denied"), status: 126, fits: re(`: (?:line )?\d+: (\.{0,2}/?[^\s:]*/[^\s:]+): Permission denied$|^g?make(?:\[\d+\])?: (\S+): Permission denied`),
		hint: "Set the exec bit of $1$2 in git (git update-index --chmod=+x), or run it through sh."},
	{class: "destdir", worth: likely, words: words("cannot create", "cannot touch"), fits: re(`cannot (?:create (?:regular file|directory|symbolic link)|touch) Q((?:/usr|/etc|/opt|/bin|/sbin|/lib|/var)[^'’]*)Q: (?:Permission denied|Read-only file system)`),
		hint: "Install wrote to $1 and not below $$DESTDIR: make install DESTDIR=$$DESTDIR, or prefix=$$DESTDIR/usr where the makefile knows no DESTDIR."},
	{class: "read-only", worth: likely, words: words("read-only file system"), fits: re(`: Read-only file system`)},
	{class: "privilege", worth: likely, words: words("operation not permitted", "must be superuser", "must be root"), fits: re(`: Operation not permitted|must be superuser|(?i)must be (?:run as )?root\b`)},
	{class: "no-user", worth: likely, words: words("invalid user", "invalid group", "unknown user", "unknown group"), fits: re(`: (?:invalid|unknown) (user|group):? Q?([\w.-]+)`), hint: "There is no $1 $2: declare it in the recipe's users or groups section, and leave chown to the install on the target."},
	{class: "device", worth: likely, words: words("/dev/", "not a tty", "inappropriate ioctl", "no such device"), fits: re(`/dev/(?:tty|kvm|pts|ptmx|fuse|dri|snd|input|loop)\S*: (?:No such|Permission denied)|: No such device or address|not a tty$|Inappropriate ioctl for device`)},
	{class: "not-a-checkout", worth: likely, words: words("not a git repository", "dubious ownership"), fits: re(`^fatal: (?:not a git repository|detected dubious ownership)`)},
	{class: "permission", worth: likely, words: words("permission denied"), fits: re(`: Permission denied`)},
	{class: "archive", worth: certain, words: words("not in gzip format", "does not look like a tar archive", "unexpected end of ", "unexpected eof in archive", "file format not recognized", "cannot find zipfile directory", "crc error", "invalid compressed data"),
		fits: re(`not in gzip format|does not look like a tar archive|^(?:gzip|xz|bzip2|zstd|lzma): .*(?:[Uu]nexpected end of (?:file|input)|File format not recognized|invalid compressed data|crc error)|Unexpected EOF in archive|cannot find zipfile directory`)},
	{class: "clock", worth: weak, words: words("clock skew detected", "in the future"), fits: re(`[Cc]lock skew detected|has modification time \S+ s in the future`)},
	{class: "exists", worth: likely, words: words("file exists"), fits: re(`: File exists$`)},
	{class: "assertion", worth: likely, status: byItself, words: words("assertion `", "assertion '", "assertion ‘", "assertion \"", "assertion failed"), fits: re(`: Assertion Q.*Q failed|[Aa]ssertion failed`)},
	{class: "crash", worth: likely, words: words("segmentation fault", "bus error", "illegal instruction", "floating point exception", "aborted", "core dumped", "trace/breakpoint trap"), status: byItself,
		fits: re(`(?:^|: |\d+ |\] )(?:Segmentation fault|Bus error|Illegal instruction|Floating point exception|Trace/breakpoint trap|Aborted)(?:\s|$)|\(core dumped\)`)},
	{class: "crash", worth: likely, words: words("] killed", "] terminated", "] error 137"), fits: re(`\*\*\* \[.*\] (?:Killed|Terminated|Error 137)`),
		hint: "Something killed it: most likely memory was short; run fewer jobs of make at a time (jobs in the recipe), or raise limits.memory of the farm."},
	{class: "translation", worth: likely, words: words("msgfmt:"), fits: re(`^msgfmt: (?:found \d+ fatal errors?|error)|: format specifications in`)},
	{class: "documentation", worth: likely, words: words(".texi:", ".texinfo:", "nonexistent node"), fits: re(`^\S+\.texi(?:nfo)?:\d+: (?:@|.*nonexistent)`)},
	{class: "missing-file", worth: likely, words: words("no such file or directory"), fits: re(`(?:cannot (?:stat|access|open|find|remove)|can't (?:read|open)|^make.*:|\S+:) Q?([^'’:\s]*)Q?(?: for reading)?: No such file or directory`),
		hint: "$1 is not there: look at what should have made or shipped it, and at the folder that the command runs in."},
	{class: "missing-file", worth: likely, words: words("no such file or directory"), fits: re(`No such file or directory`)},
}

// lastRules are for what nothing else fits: the last such line before the end.
var lastRules = []rule{
	{class: Unknown, worth: weak, words: words("error: ", "fatal: ", "error - ", "panic: "), fits: re(`^(?:[^\s:]+: )?(?:(?i)error|fatal|panic): \S`)},
}
