//! What a program needs to run elsewhere: its ELF interpreter and shared objects, found as ld.so(8)
//! finds them, without running anything.
//!
//! Libraries that a program loads by name while it runs (`dlopen`) cannot be seen here.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

use super::strip::stripped;

/// Folders that ld.so looks into at last: glibc's of Debian's kind, glibc's of others, musl's.
const LAST_FOLDERS: [&str; 7] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

/// The files that say where ld.so looks besides.
const CONFIGURATION: &str = "/etc/ld.so.conf";

/// Files that include files that include files: more depth than anybody uses.
const MAX_DEPTH: usize = 8;

/// Why a program cannot run in a virtual machine.
#[derive(Debug, thiserror::Error)]
pub(super) enum ElfError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// It starts with `#!`.
    #[error("{} is a script, and the guest has no programs but one", .0.display())]
    Script(PathBuf),
    /// It is no ELF file, or a broken one.
    #[error("{} is no ELF program: {reason}", path.display())]
    NoElf { path: PathBuf, reason: &'static str },
    /// A library is not there.
    #[error("{} needs the library {name}, which is in none of {searched}", by.display())]
    Missing { name: String, by: PathBuf, searched: String },
}

/// A program with everything that it needs to run: each file by its path in the guest, which is the
/// one that it is found by here.
pub(super) fn with_needs(
    program: &Path,
    library_path: Option<&OsStr>,
) -> Result<BTreeMap<PathBuf, Vec<u8>>, ElfError> {
    let configured = configured_folders(Path::new(CONFIGURATION), MAX_DEPTH);
    let given: Vec<PathBuf> = library_path.map(split).unwrap_or_default();
    let mut files = BTreeMap::new();
    let mut found = BTreeMap::<Vec<u8>, ()>::new();
    let mut waiting = VecDeque::from([program.to_owned()]);
    // The program's DT_RPATH holds for its libraries, too.
    let mut inherited = Vec::new();
    while let Some(path) = waiting.pop_front() {
        if files.contains_key(&path) {
            continue;
        }
        let bytes = read(&path)?;
        let object = Object::parse(&path, &bytes)?;
        if path == program {
            inherited.clone_from(&object.rpath);
        }
        if let Some(interpreter) = object.interpreter {
            waiting.push_back(interpreter);
        }
        let folders: Vec<&Path> = (object.rpath.iter())
            .chain(if object.runpath.is_empty() { &inherited } else { &[][..] })
            .chain(&given)
            .chain(&object.runpath)
            .chain(&configured)
            .map(PathBuf::as_path)
            .chain(LAST_FOLDERS.map(Path::new))
            .collect();
        for name in object.needed {
            if found.insert(name.clone(), ()).is_none() {
                waiting.push_back(find(&name, &path, &folders)?);
            }
        }
        files.insert(path, stripped(bytes));
    }
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, ElfError> {
    fs::read(path).map_err(|source| ElfError::Read { path: path.to_owned(), source })
}

/// The file of a library.
fn find(name: &[u8], by: &Path, folders: &[&Path]) -> Result<PathBuf, ElfError> {
    let name = Path::new(OsStr::from_bytes(name));
    // With a `/` in it, it is a path.
    let candidates: Vec<PathBuf> = if name.components().count() > 1 || name.has_root() {
        vec![name.to_owned()]
    } else {
        folders.iter().map(|folder| folder.join(name)).collect()
    };
    // ld.so passes over libraries for other machines.
    let fits =
        |path: &&PathBuf| fs::read(path).is_ok_and(|bytes| Object::parse(path, &bytes).is_ok());
    candidates.iter().find(fits).map(|path| plain(path)).ok_or_else(|| {
        let mut searched: Vec<String> = Vec::new();
        for folder in folders.iter().map(|folder| folder.display().to_string()) {
            if !searched.contains(&folder) {
                searched.push(folder);
            }
        }
        ElfError::Missing {
            name: name.display().to_string(),
            by: by.to_owned(),
            searched: searched.join(", "),
        }
    })
}

/// The path without `..`, each of which takes the step before it back.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

/// What one file says of itself.
struct Object {
    interpreter: Option<PathBuf>,
    needed: Vec<Vec<u8>>,
    rpath: Vec<PathBuf>,
    runpath: Vec<PathBuf>,
}

impl Object {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ElfError> {
        if bytes.starts_with(b"#!") {
            return Err(ElfError::Script(path.to_owned()));
        }
        Self::read(path, bytes).map_err(|reason| ElfError::NoElf { path: path.to_owned(), reason })
    }

    fn read(path: &Path, bytes: &[u8]) -> Result<Self, &'static str> {
        const BROKEN: &str = "its headers are broken";
        let header = FileHeader64::<Endianness>::parse(bytes)
            .map_err(|_| "it does not start like a 64-bit one")?;
        let endian = header.endian().map_err(|_| BROKEN)?;
        if header.e_machine(endian) != elf::EM_X86_64 {
            return Err("it is for another kind of processor");
        }
        let segments = header.program_headers(endian, bytes).map_err(|_| BROKEN)?;
        let mut object =
            Self { interpreter: None, needed: Vec::new(), rpath: Vec::new(), runpath: Vec::new() };
        let mut dynamic = None;
        for segment in segments {
            if let Some(name) = segment.interpreter(endian, bytes).map_err(|_| BROKEN)? {
                object.interpreter = Some(PathBuf::from(OsStr::from_bytes(name)));
            }
            dynamic = dynamic.or(segment.dynamic(endian, bytes).map_err(|_| BROKEN)?);
        }
        let Some(dynamic) = dynamic else { return Ok(object) };
        let value = |tag: u32| {
            dynamic.iter().find(|entry| entry.tag32(endian) == Some(tag)).map(|it| it.d_val(endian))
        };
        let (Some(at), Some(size)) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ)) else {
            return Ok(object);
        };
        let strings = segments
            .iter()
            .find_map(|segment| segment.data_range(endian, bytes, at, size).ok().flatten())
            .ok_or(BROKEN)?;
        let origin = path.parent().unwrap_or(Path::new("/"));
        for entry in dynamic {
            let text = || {
                let start = usize::try_from(entry.d_val(endian)).ok();
                let rest = start.and_then(|start| strings.get(start..)).ok_or(BROKEN)?;
                rest.split(|byte| *byte == 0).next().ok_or(BROKEN)
            };
            match entry.tag32(endian) {
                Some(elf::DT_NULL) => break,
                Some(elf::DT_NEEDED) => object.needed.push(text()?.to_vec()),
                Some(elf::DT_RPATH) => object.rpath = folders(text()?, origin),
                Some(elf::DT_RUNPATH) => object.runpath = folders(text()?, origin),
                _ => {}
            }
        }
        if !object.runpath.is_empty() {
            // Where there are both, ld.so ignores the older kind.
            object.rpath.clear();
        }
        Ok(object)
    }
}

/// The folders of a path of an ELF file, with `$ORIGIN` for the file's own.
fn folders(text: &[u8], origin: &Path) -> Vec<PathBuf> {
    let text = String::from_utf8_lossy(text);
    let origin = origin.to_string_lossy();
    let text = text.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin);
    split(OsStr::new(&text))
}

/// The absolute folders of a list with colons between them.
fn split(list: &OsStr) -> Vec<PathBuf> {
    std::env::split_paths(list).filter(|folder| folder.is_absolute()).collect()
}

/// The folders of ld.so.conf and of what it includes.
fn configured_folders(file: &Path, depth: usize) -> Vec<PathBuf> {
    let Ok(text) = fs::read_to_string(file) else { return Vec::new() };
    let mut folders = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.strip_prefix("include ") {
            Some(pattern) if depth > 0 => {
                for included in matching(file, pattern.trim()) {
                    folders.extend(configured_folders(&included, depth - 1));
                }
            }
            Some(_) => {}
            None if line.starts_with('/') => folders.push(PathBuf::from(line)),
            None => {}
        }
    }
    folders
}

/// The files that an include of ld.so.conf means, in order: `*` stands in the last part only.
fn matching(file: &Path, pattern: &str) -> Vec<PathBuf> {
    let path = file.parent().unwrap_or(Path::new("/")).join(pattern);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Vec::new();
    };
    let Some((start, end)) = name.split_once('*') else { return vec![path] };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let fits = |name: &str| {
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut files: Vec<_> = names.filter(|name| fits(name)).map(|it| folder.join(it)).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_interpreter_and_libraries() {
        let own = std::env::current_exe().unwrap();
        let files = with_needs(&own, None).unwrap();
        assert_eq!(files.get(&own), Some(&stripped(fs::read(&own).unwrap())));
        let has = |part: &str| files.keys().any(|path| path.to_string_lossy().contains(part));
        assert!(has("/ld-"), "{:?}", files.keys());
        assert!(has("libc.so"), "{:?}", files.keys());
    }

    #[test]
    fn what_is_no_program_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let error = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            with_needs(&path, None).unwrap_err().to_string()
        };
        assert!(error("script", b"#!/bin/sh\n").contains("is a script"));
        assert!(error("text", b"hello").contains("64-bit"));
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut foreign = own.clone();
        // e_machine: AArch64.
        foreign[18] = 183;
        assert!(error("foreign", &foreign).contains("another kind of processor"));
        for len in [16, 63, 64, 200, 1_000] {
            // Whatever it says, it does not panic.
            let _ = error("cut", &own[..len]);
        }
        assert!(with_needs(Path::new("/no/such"), None).is_err());
    }

    #[test]
    fn broken_headers_never_panic() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        let path = Path::new("/x");
        for place in 0..1_024.min(own.len()) {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = own[..own.len().min(1 << 20)].to_vec();
                bytes[place] = value;
                let _ = Object::parse(path, &bytes);
            }
        }
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let error = find(b"libnothing.so.7", Path::new("/bin/x"), &[Path::new("/a")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/bin/x needs the library libnothing.so.7, which is in none of /a"
        );
    }

    #[test]
    fn configured_folders_are_read_with_what_is_included() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        write("ld.so.conf", "# comment\n/first\ninclude d/*.conf\ninclude missing\n/last # x\n");
        write("d/b.conf", "/b\n");
        write("d/a.conf", "/a\nrelative\n");
        write("d/c.txt", "/c\n");
        let folders = configured_folders(&folder.path().join("ld.so.conf"), MAX_DEPTH);
        assert_eq!(folders, ["/first", "/a", "/b", "/last"].map(PathBuf::from));
        write("loop.conf", "include loop.conf\n/once\n");
        assert!(configured_folders(&folder.path().join("loop.conf"), MAX_DEPTH).len() < 20);
    }

    #[test]
    fn origin_is_the_folder_of_the_file() {
        assert_eq!(plain(Path::new("/opt/x/bin/../lib/./y")), Path::new("/opt/x/lib/y"));
        let found = folders(b"$ORIGIN/../lib:${ORIGIN}:/abs:rel", Path::new("/opt/x/bin"));
        assert_eq!(found, ["/opt/x/bin/../lib", "/opt/x/bin", "/abs"].map(PathBuf::from));
    }
}
