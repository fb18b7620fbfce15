//! Finding programs: in `PATH`, then in netyard's own folder.

use std::env;
use std::ffi::OsString;
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
/// There is none, or what is there cannot be executed.
pub(crate) fn find(
    name: &str,
    variables: &[(String, String)],
    cwd: &Path,
) -> Result<PathBuf, YardError> {
    let wanted = format!("run {name}");
    if name.contains('/') {
        let path = cwd.join(name);
        return match executable(&path) {
            Found::Yes => Ok(path),
            Found::NotExecutable => Err(not_executable(wanted, &path)),
            Found::No => {
                let found = format!("there is no file {}", path.display());
                Err(YardError::new(ErrorKind::Unknown, wanted, found).next("check the path"))
            }
        };
    }
    let folders = search_path(variables);
    let mut refused = None;
    for folder in env::split_paths(&folders) {
        let path = cwd.join(folder).join(name);
        match executable(&path) {
            Found::Yes => return Ok(path),
            Found::NotExecutable => refused = refused.or(Some(path)),
            Found::No => {}
        }
    }
    Err(match refused {
        Some(path) => not_executable(wanted, &path),
        None => {
            let searched = folders.to_string_lossy().replace(':', ", ");
            YardError::new(ErrorKind::Unknown, wanted, format!("no such program in {searched}"))
                .next("install it, or give its path (./NAME for one in the working folder)")
        }
    })
}

fn not_executable(wanted: String, path: &Path) -> YardError {
    let found = format!("{} is not executable", path.display());
    YardError::new(ErrorKind::NotPermitted, wanted, found)
        .next(format!("chmod +x {}", path.display()))
}

enum Found {
    Yes,
    NotExecutable,
    No,
}

fn executable(path: &Path) -> Found {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => {
            Found::Yes
        }
        Ok(metadata) if metadata.is_file() => Found::NotExecutable,
        _ => Found::No,
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
        assert_eq!(find("text").unwrap_err().kind, ErrorKind::NotPermitted);
        let own = env::current_exe().unwrap();
        assert_eq!(find(own.file_name().unwrap().to_str().unwrap()).unwrap(), own);

        let missing = find("no-such-tool").unwrap_err();
        assert_eq!(missing.kind, ErrorKind::Unknown);
        assert!(missing.found.contains(&folder.path().display().to_string()), "{missing}");
        assert!(missing.found.contains(&own.parent().unwrap().display().to_string()), "{missing}");
    }
}
