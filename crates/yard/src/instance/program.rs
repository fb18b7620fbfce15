//! Finding programs: in `PATH`, then in netyard's own folder.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{ErrorKind, YardError};

/// The value of `PATH` for an instance: its own or ours, then netyard's own folder.
pub(super) fn search_path(variables: &[(String, String)]) -> OsString {
    let own = variables.iter().rev().find(|(name, _)| name == "PATH");
    let path = own.map(|(_, value)| value.into()).or_else(|| env::var_os("PATH"));
    with_own_folder(path.unwrap_or_default())
}

fn with_own_folder(mut path: OsString) -> OsString {
    let Some(folder) = own_folder() else { return path };
    if !env::split_paths(&path).any(|entry| entry == folder) {
        if !path.is_empty() {
            path.push(":");
        }
        path.push(folder);
    }
    path
}

/// The folder that this program is in.
fn own_folder() -> Option<PathBuf> {
    env::current_exe().ok()?.parent().map(Path::to_owned)
}

/// Finds the program that `name` means. With a `/` in it, it is a path seen from `cwd`;
/// otherwise it is looked up in `PATH` (of `variables` if they have one), then in netyard's own
/// folder.
///
/// # Errors
/// [`ErrorKind::NoProgram`]: there is none. [`ErrorKind::NotExecutable`]: what is there cannot be
/// executed.
pub(crate) fn find(
    name: &str,
    variables: &[(String, String)],
    cwd: &Path,
) -> Result<PathBuf, YardError> {
    let wanted = format!("run {name}");
    if name.contains('/') {
        let path = cwd.join(name);
        let at = path.display();
        let (kind, found, next) = match look(&path) {
            Found::Program => return Ok(path),
            Found::File => return Err(not_executable(wanted, &path)),
            Found::Folder => {
                let next = "name a program in it".to_owned();
                (ErrorKind::NotExecutable, format!("{at} is a folder"), next)
            }
            Found::Closed => {
                let next = "open the folders that lead to it to you".to_owned();
                (ErrorKind::NotExecutable, format!("{at} is out of your reach"), next)
            }
            Found::Nothing => (
                ErrorKind::NoProgram,
                format!("there is no file {at}"),
                "check the path".to_owned(),
            ),
        };
        return Err(YardError::new(kind, wanted, found).next(next));
    }
    let folders = search_path(variables);
    let mut refused = None;
    for folder in env::split_paths(&folders) {
        let path = cwd.join(folder).join(name);
        match look(&path) {
            Found::Program => return Ok(path),
            Found::File => refused = refused.or(Some(path)),
            Found::Folder | Found::Closed | Found::Nothing => {}
        }
    }
    Err(match refused {
        Some(path) => not_executable(wanted, &path),
        None => {
            let searched = folders.to_string_lossy().replace(':', ", ");
            YardError::new(ErrorKind::NoProgram, wanted, format!("no such program in {searched}"))
                .next("install it, or give its path (./NAME for one in the working folder)")
        }
    })
}

fn not_executable(wanted: String, path: &Path) -> YardError {
    let found = format!("{} is not executable", path.display());
    YardError::new(ErrorKind::NotExecutable, wanted, found)
        .next(format!("chmod +x {}", path.display()))
}

/// Why a program that was found did not start: what the kernel said to execve(2), with its number.
pub(super) fn not_started(
    wanted: String,
    program: &str,
    errno: Option<i32>,
    said: &str,
) -> YardError {
    const ENOENT: i32 = 2;
    const EAGAIN: i32 = 11;
    const ENOMEM: i32 = 12;
    let error = |kind, found| YardError::new(kind, wanted, found);
    match errno {
        Some(ENOENT) => {
            let found = format!("{program}, or the interpreter that it names, is not there");
            error(ErrorKind::NoProgram, found).next(format!("see what it is: file {program}"))
        }
        Some(EAGAIN | ENOMEM) => error(ErrorKind::System, format!("{program}: {said}")),
        Some(_) => error(ErrorKind::NotExecutable, format!("{program}: {said}")),
        None => error(ErrorKind::Program, format!("{program}: {said}")),
    }
}

enum Found {
    Program,
    /// One that nobody may execute.
    File,
    Folder,
    /// Its folder is closed to us.
    Closed,
    Nothing,
}

fn look(path: &Path) -> Found {
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Found::Folder,
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
            Found::Program
        }
        Ok(_) => Found::File,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Found::Closed,
        Err(_) => Found::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn programs_are_found_in_path_then_in_our_folder() {
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join("tool");
        fs::write(&tool, "").unwrap();
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.path().join("text"), "").unwrap();
        let variables = [("PATH".to_owned(), folder.path().display().to_string())];
        let find = |name: &str| find(name, &variables, folder.path());

        assert_eq!(find("tool").unwrap(), tool);
        assert_eq!(find("./tool").unwrap(), folder.path().join("./tool"));
        for refused in ["text", "./text", "./"] {
            assert_eq!(find(refused).unwrap_err().kind, ErrorKind::NotExecutable, "{refused}");
        }
        assert_eq!(find("./none").unwrap_err().kind, ErrorKind::NoProgram);
        let own = env::current_exe().unwrap();
        assert_eq!(find(own.file_name().unwrap().to_str().unwrap()).unwrap(), own);

        let missing = find("no-such-tool").unwrap_err();
        assert_eq!(missing.kind, ErrorKind::NoProgram);
        assert!(missing.found.contains(&folder.path().display().to_string()), "{missing}");
        assert!(missing.found.contains(&own.parent().unwrap().display().to_string()), "{missing}");
    }
}
