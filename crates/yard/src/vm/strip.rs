//! Leaves out of an ELF file what is not needed to run it: the guest's kernel unpacks every byte,
//! and debugging information is most of many programs.
//!
//! What the kernel and ld.so read are segments. Sections that belong to none stand behind the last
//! segment, and so does what some programs append to themselves; a file with anything there that is
//! not known is left whole.

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};

/// Sections for debuggers, beside those whose names begin with one of [`PREFIXES`].
const NAMES: [&[u8]; 4] = [b".comment", b".symtab", b".strtab", b".shstrtab"];
const PREFIXES: [&[u8]; 3] = [b".debug_", b".gnu_debug", b".note."];

/// Nothing is appended between here and the end of a file: padding.
const PADDING: u64 = 16;

/// Places in the header: of the section table, of the number of its entries and of the one with names
/// (elf(5), `Elf64_Ehdr`).
const TABLE: std::ops::Range<usize> = 0x28..0x30;
const NUMBERS: std::ops::Range<usize> = 0x3c..0x40;

/// The file as it is needed to run.
pub(super) fn stripped(mut bytes: Vec<u8>) -> Vec<u8> {
    let Some(end) = end_of_segments(&bytes) else { return bytes };
    bytes.truncate(end);
    for place in [TABLE, NUMBERS] {
        if let Some(place) = bytes.get_mut(place) {
            place.fill(0);
        }
    }
    bytes
}

/// Where the last segment ends, if nothing but sections for debuggers comes behind it.
fn end_of_segments(bytes: &[u8]) -> Option<usize> {
    let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, bytes).ok()?;
    let range = |offset: u64, size: u64| offset.checked_add(size);
    let mut segments_end = 0;
    for segment in header.program_headers(endian, bytes).ok()? {
        let end = range(segment.p_offset(endian), segment.p_filesz(endian))?;
        segments_end = segments_end.max(end);
    }
    let entries = u64::from(header.e_shnum(endian)) * u64::from(header.e_shentsize(endian));
    let mut file_end = range(header.e_shoff(endian), entries)?;
    for section in sections.iter() {
        if section.sh_type(endian) == elf::SHT_NOBITS {
            continue;
        }
        let end = range(section.sh_offset(endian), section.sh_size(endian))?;
        file_end = file_end.max(end);
        let name = sections.section_name(endian, section).ok()?;
        let known = NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let loaded = section.sh_flags(endian) & u64::from(elf::SHF_ALLOC) != 0;
        if end > segments_end && (loaded || !known) {
            return None;
        }
    }
    let len = u64::try_from(bytes.len()).ok()?;
    let appended = len > file_end.max(segments_end).checked_add(PADDING)?;
    let end = usize::try_from(segments_end).ok()?;
    (!appended && (NUMBERS.end..bytes.len()).contains(&end)).then_some(end)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use netyard_testbed::{peer, run};

    use super::*;

    #[test]
    fn a_program_runs_without_what_is_for_debuggers() {
        let whole = fs::read(std::env::current_exe().unwrap()).unwrap();
        let small = stripped(whole.clone());
        assert!(small.len() < whole.len() / 2, "{} of {}", small.len(), whole.len());
        let folder = tempfile::tempdir().unwrap();
        let (written, program) = (folder.path().join("written"), folder.path().join("program"));
        fs::write(&written, &small).unwrap();
        // Written by another process: what another test starts meanwhile has our descriptors for a
        // moment, and what somebody writes to is not run (execve(2), ETXTBSY).
        run(Command::new(peer("install")).args(["-m", "755"]).args([&written, &program]));
        let done = Command::new(&program).arg("--list").output().unwrap();
        assert!(done.status.success(), "{done:?}");
        assert!(String::from_utf8(done.stdout).unwrap().contains("a_program_runs_without"));
        // There is nothing more to leave out.
        assert_eq!(stripped(small.clone()), small);
    }

    #[test]
    fn what_is_appended_to_a_program_stays_with_it() {
        let mut whole = fs::read(std::env::current_exe().unwrap()).unwrap();
        whole.extend(b"an archive that the program reads from itself");
        assert_eq!(stripped(whole.clone()).len(), whole.len());
    }

    #[test]
    fn what_is_no_program_or_broken_stays_as_it_is() {
        let whole = fs::read(std::env::current_exe().unwrap()).unwrap();
        for len in [0, 4, 0x20, 0x40, 0x400, whole.len() / 2] {
            assert_eq!(stripped(whole[..len].to_vec()), whole[..len]);
        }
        assert_eq!(stripped(b"#!/bin/sh\n".to_vec()), b"#!/bin/sh\n");
    }
}
