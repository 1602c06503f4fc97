package explain

import "github.com/Morphux/quarry"

// Class is a kind of trouble.
type Class struct {
	Name string // as in quarry.Failure.Class and in records
	Says string // what it means
	Hint string // what to do, where the line itself says no more
}

// Classes lists all there are, in the order in which doc/failures.md has them.
func Classes() []Class { return append([]Class(nil), classTable...) }

// Unknown is the class of what nothing is known about.
const Unknown = "unknown"

var classTable = []Class{
	// What compiles.
	{"compiler", "a source file does not compile (C, C++, Rust, Go, Java, Fortran, Haskell, Vala, yacc...)", "The error line names the file and the place: look whether a newer version or a patch mends it."},
	{"missing-header", "a header that is included is not there", "Add the package that has the header to the recipe's needed dependencies."},
	{"implicit-declaration", "a C function is used and never declared, which newer compilers refuse", "Include the header that declares it, or patch the source."},
	{"stricter-compiler", "C that older compilers took with a warning: mixed pointer and integer types, missing types", "Patch the source; until then -fpermissive (GCC 14) or -Wno-error=NAME in CFLAGS has it compile."},
	{"warning-as-error", "a warning that -Werror makes an error", "Build without -Werror: most packages have --disable-werror, or put -Wno-error into CFLAGS."},
	{"format-security", "a format string that is not constant, refused by -Werror=format-security", "Patch the call: printf(\"%s\", text) instead of printf(text)."},
	{"compiler-option", "the compiler does not know an option that it is given", "Take the option out of CFLAGS or of the makefile: it is of another compiler, version or arch."},
	{"compiler-crash", "the compiler itself crashed", "Build it again: if it stays, it is a fault of the compiler, or memory is short; lower the optimisation of that file."},
	{"assembler", "the assembler does not know an instruction", "The code is written for another arch, or for a newer one: configure it without assembly, or for this arch."},
	{"toolchain", "the compiler does not work at all, so that configure gives up", "Look at CC, CFLAGS and LDFLAGS of the recipe: config.log says what the compiler answered."},
	// What links.
	{"undefined-reference", "a symbol that is used is in no library that is linked", "A library is missing on the linker's command line: add it to LIBS (-lm, -lpthread, -ldl...), after what uses it."},
	{"missing-library", "the linker does not find a library", "Add the package that has the library to the recipe's needed dependencies."},
	{"multiple-definition", "a symbol is defined twice", "Since GCC 10 a variable in a header needs extern; until it is patched, -fcommon in CFLAGS has it link."},
	{"relocation", "code that is not position independent goes into a shared library", "Build what the line names with -fPIC."},
	{"wrong-arch", "an object, library or program is of another arch", "It comes with the sources, or from a dependency, for another machine: have it built, not shipped."},
	{"shared-library", "a program does not start, as a library or a symbol of it is missing", "Add the library's package to the needed dependencies; what was just built needs LD_LIBRARY_PATH or an rpath."},
	{"linker", "the linker failed for another reason", "The lines before say which file it was."},
	// What is missing.
	{"missing-program", "a program that is run is not there", "Add the package that has the program to the recipe's needed dependencies."},
	{"missing-pkg-config", "pkg-config does not know a module, or only an older one", "Add the package that has the module's .pc file to the recipe's needed dependencies."},
	{"missing-dependency", "cmake, meson or another does not find what it needs", "Add its package to the recipe's needed dependencies, or switch the feature off."},
	{"missing-perl-module", "a Perl module is not there", "Add the package that has the module to the recipe's needed dependencies."},
	{"missing-python-module", "a Python module is not there", "Add the package that has the module to the recipe's needed dependencies."},
	{"missing-node-module", "a module of Node.js is not there", "Put the modules into the sources: a build cannot fetch them."},
	{"unvendored", "a crate or Go module is not among the sources", "Put the modules into the sources (cargo vendor, go mod vendor): a build cannot fetch them."},
	{"missing-file", "a file that is read is not there", "Look at what should have made or shipped it, and at the folder that the command runs in."},
	{"version", "something is there, but too old or too new", "Package the version that is asked for, or an older release of this package."},
	// What configures.
	{"configure", "a check of configure failed", "The message names what it wants: add it to the needed dependencies, or switch the feature off (--without-...)."},
	{"cmake", "cmake stopped", "The lines below the error say where."},
	{"meson", "meson stopped", "The error line says where."},
	{"autotools-rerun", "make runs aclocal, autoconf or automake again, in a version that is not there", "A patch touched configure.ac, Makefile.am or what comes of them: patch the made files too, or run autoreconf -fi in scripts/before.sh."},
	{"autotools", "autoconf or automake stopped, as a macro or a file is missing", "Add the package that has the macro to the needed dependencies, or use the configure that is shipped."},
	{"libtool", "libtool stopped", "Run autoreconf -fi in scripts/before.sh, or add the package that has the library."},
	{"config-guess", "config.guess or config.sub is too old for the arch", "Put newer ones (GNU config) over them in scripts/before.sh."},
	// What is tested.
	{"test", "a test failed", "Look into the test's own log above; one that needs network, a terminal or another user can be left out by the recipe."},
	// What is patched.
	{"patch", "a patch does not fit", "Make the patch again for this version of the sources."},
	{"patch-applied", "a patch is in the sources already", "Take the patch out of the recipe."},
	{"patch-file", "a file that is to be patched is not there", "Patches are applied with -p1: the names in it must begin with one folder that is dropped, as a/ and b/."},
	{"patch-malformed", "a patch is damaged, or is none", "Make the patch again, with diff -u or git format-patch; an editor may have changed its white space."},
	// What makefiles and scripts say.
	{"no-rule", "make has no rule for a file that is needed", "A file is missing in the sources, or its name in the makefile is wrong."},
	{"no-target", "make does not know the target that the recipe names", "Name a target that the makefile has: make, test and install of the recipe."},
	{"makefile", "a makefile is wrong, or there is none", "Has configure been run, and in the right folder? A recipe line begins with a tab."},
	{"script", "a shell script has a syntax error", "Is it written for bash and run by sh? An unexpanded macro in configure (PKG_..., AX_...) wants autoreconf with its package installed."},
	{"python-version", "Python 2 code is run by Python 3", "Use a version of the package for Python 3, or patch the script."},
	{"exception", "a script or program ended with an exception", "The last line of the trace says what happened, the lines above where."},
	{"not-executable", "a file that is run may not be run", "Set its exec bit in git (git update-index --chmod=+x), or run it through sh."},
	{"interpreter", "the interpreter that a script names is not there", "Patch the first line of the script, or add the interpreter to the needed dependencies."},
	{"exists", "something that is to be made is there already", "Sources must come without what a build makes: remove it from srcs/."},
	// What a build may not, or cannot.
	{"network", "the build tried to reach the network, which no build has", "Put what it fetches into srcs/, or switch the download off."},
	{"checksum", "a file has not the checksum that is expected", "The file in srcs/ is another one than the checksum is of: get it again, or correct the sum."},
	{"permission", "something was not permitted", "Builds run as root of their own: look who owns the file, and whether it is a device or a mount."},
	{"privilege", "chown, mknod, mount or the like that needs more than a build may", "Leave it to the recipe's files section, or to the install on the target."},
	{"no-user", "a user or a group is not there", "Declare it in the recipe's users or groups section, and leave chown to the install on the target."},
	{"read-only", "something wrote to a read-only file system", "Have it write below the build's folder or $DESTDIR."},
	{"device", "a device or terminal that builds have not", "Builds have no terminal, and few devices: leave out what needs them."},
	{"not-a-checkout", "git is asked about sources that are no git repository", "Write the version into a file that the package reads instead; release tarballs have one."},
	// What is broken around it.
	{"archive", "an archive is damaged, or is none", "Get the file in srcs/ again: an error page may have been saved under its name."},
	{"clock", "times of files are wrong", "Level the times of the files in scripts/before.sh, with touch -r configure."},
	{"locale", "a locale is not there", "Builds have C.UTF-8 only: ask for that, or make the locale in scripts/before.sh."},
	{"encoding", "text is read in the wrong encoding", "Have it read as UTF-8: builds run with LC_ALL=C.UTF-8."},
	{"open-files", "too many files are open", "Run fewer jobs of make at a time (jobs in the recipe), or raise limits.open_files of the farm."},
	{"argument-list", "a command line is too long", "Patch the makefile to use a list in a file, or xargs."},
	{"crash", "a program crashed: it was killed by a signal", "If it is one that was just built, look for the fault there; on an emulated arch, at the emulator."},
	{"assertion", "a program's own assertion failed", "The line says which; look for a fix in a newer version."},
	{"translation", "message catalogues do not compile", "Mend the .po file that the line names, or build without translations (--disable-nls)."},
	{"documentation", "documentation does not build", "Mend the page, or build without documentation."},
	// What the farm itself finds.
	{string(quarry.CauseMemory), "memory ran out", "Run fewer jobs of make at a time (jobs in the recipe), or raise limits.memory of the farm."},
	{string(quarry.CauseDisk), "disk ran out", "Have the build keep less, or raise limits.disk of the farm."},
	{string(quarry.CauseProcs), "there were too many processes", "Run fewer jobs of make at a time (jobs in the recipe), or raise limits.processes of the farm."},
	{string(quarry.CauseTime), "it took too long", "See what it did last: if it does not hang, raise limits.step of the farm; timeouts in the recipe only lower it."},
	{string(quarry.CauseSilence), "it printed nothing for too long", "See what it did last: it may wait for input or for a lock; if it only works in silence, have it print."},
	{string(quarry.CauseLog), "it printed too much", "Look for what repeats: an endless loop, or an option like -v that can go."},
	{"destdir", "install wrote into the system itself, as if it did not know $DESTDIR", "Give the install step the folder: make install DESTDIR=$DESTDIR, or prefix=$DESTDIR/usr where the makefile knows no DESTDIR."},
	{string(quarry.CauseEscape), "a step wrote outside of the staging folder", "Have it write below $DESTDIR, or below the build's folder."},
	{string(quarry.CauseOutput), "what it installed cannot be accepted", "The message says which file and why."},
	{string(quarry.CauseRecipe), "the recipe asks for what cannot be done", "Mend package.json, or what it names."},
	{Unknown, "nothing in the log is known", "Read the log from this line upwards; what ended the step is as a rule just above."},
}

var classHints = func() map[string]string {
	m := make(map[string]string, len(classTable))
	for _, c := range classTable {
		m[c.Name] = c.Hint
	}
	return m
}()
