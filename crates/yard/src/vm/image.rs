//! The first file system of a guest that runs one program.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use netyard_vminit::{CONFIG, Config, INIT};

use super::cpio::{Archive, CpioError};
use super::elf::{self, ElfError};
use super::kernel::Module;
use crate::error::{ErrorKind, YardError};

/// File name of the guest's init; it stands in netyard's own folder.
const INIT_PROGRAM: &str = "netyard-vminit";

/// Where the modules are, in the guest.
const MODULES: &str = "/netyard/modules";

/// Folders that programs expect.
const FOLDERS: [&str; 6] = ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc"];

/// What ld.so finds libraries with that are in folders of their own.
const LIBRARY_CACHE: &str = "/etc/ld.so.cache";

/// The archive with init, modules, the program and its libraries.
pub(super) fn with_program(
    program: &Path,
    library_path: Option<&OsStr>,
    modules: &[Module],
) -> Result<Vec<u8>, YardError> {
    let wanted = format!("put {} into a virtual machine", program.display());
    let mut archive = Archive::default();
    let mut pack = Pack { archive: &mut archive, wanted: &wanted };
    for folder in FOLDERS {
        pack.archive.folder(Path::new(folder)).map_err(|error| pack.refused(folder, error))?;
    }
    let init = find_init()?;
    pack.program(&init, None, Some(Path::new(INIT)))?;
    pack.program(program, library_path, None)?;
    for (number, module) in modules.iter().enumerate() {
        pack.file(&module_path(number, module), 0o644, &module.bytes)?;
    }
    if let Ok(cache) = fs::read(LIBRARY_CACHE) {
        pack.file(Path::new(LIBRARY_CACHE), 0o644, &cache)?;
    }
    finish(archive, &wanted)
}

/// The archive with what one guest is. It comes behind the other.
pub(super) fn with_config(config: &Config) -> Result<Vec<u8>, YardError> {
    let wanted = format!("describe the virtual machine {}", config.host_name);
    let text = serde_json::to_vec(config)
        .map_err(|error| YardError::new(ErrorKind::Bug, wanted.clone(), error.to_string()))?;
    let mut archive = Archive::default();
    Pack { archive: &mut archive, wanted: &wanted }.file(Path::new(CONFIG), 0o600, &text)?;
    finish(archive, &wanted)
}

/// Where the guest finds its modules, in the order of loading.
pub(super) fn module_paths(modules: &[Module]) -> Vec<PathBuf> {
    modules.iter().enumerate().map(|(number, module)| module_path(number, module)).collect()
}

fn module_path(number: usize, module: &Module) -> PathBuf {
    Path::new(MODULES).join(format!("{number:02}-{}.ko", module.name))
}

fn finish(archive: Archive, wanted: &str) -> Result<Vec<u8>, YardError> {
    archive
        .finish()
        .map_err(|error| YardError::new(ErrorKind::Bug, wanted.to_owned(), error.to_string()))
}

/// The guest's init.
fn find_init() -> Result<PathBuf, YardError> {
    let wanted = "find the init of virtual machines";
    let own = env::current_exe().map_err(|error| YardError::io(wanted, &error))?;
    let path = own.with_file_name(INIT_PROGRAM);
    if path.is_file() {
        return Ok(path);
    }
    let found = format!("there is no {}", path.display());
    Err(YardError::new(ErrorKind::Unknown, wanted, found)
        .next(format!("install {INIT_PROGRAM} beside netyard: `make install` puts both there")))
}

/// An archive that is being filled.
struct Pack<'a> {
    archive: &'a mut Archive,
    wanted: &'a str,
}

impl Pack<'_> {
    /// Adds a program with what it needs. In the guest the program itself is at `target`, if that
    /// is given, and everything else where it is here.
    fn program(
        &mut self,
        program: &Path,
        library_path: Option<&OsStr>,
        target: Option<&Path>,
    ) -> Result<(), YardError> {
        let files = elf::with_needs(program, library_path).map_err(|error| self.unfit(&error))?;
        for (path, bytes) in files {
            let target = target.filter(|_| path == program).unwrap_or(&path);
            let mode = path.metadata().map_or(0o755, |data| data.permissions().mode());
            self.file(target, mode | 0o500, &bytes)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<(), YardError> {
        self.archive.file(path, mode, bytes).map_err(|error| self.refused(path, error))
    }

    fn refused(&self, path: impl AsRef<Path>, error: CpioError) -> YardError {
        let found = format!("{}: {error}", path.as_ref().display());
        YardError::new(ErrorKind::Input, self.wanted, found)
    }

    fn unfit(&self, error: &ElfError) -> YardError {
        let kind = match error {
            ElfError::Missing { .. } => ErrorKind::NoProgram,
            ElfError::Read { .. } | ElfError::Script(_) | ElfError::NoElf { .. } => {
                ErrorKind::NotExecutable
            }
        };
        let next = match error {
            ElfError::Read { .. } => "let it be read",
            ElfError::Missing { .. } => "install the library, or link the program statically",
            ElfError::Script(_) => {
                "give a program that is compiled, or make an initrd or a drive with everything \
                 that the script needs"
            }
            ElfError::NoElf { .. } => "give a program that was built for Linux on x86-64",
        };
        YardError::new(kind, self.wanted, error.to_string()).next(next)
    }
}
