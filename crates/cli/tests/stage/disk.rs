//! A disk that boots a kernel by a loader of its own.

use std::fs;
use std::path::Path;

const SECTOR: usize = 512;

/// What the loader reads at a time.
const CHUNK: usize = 64 * SECTOR;

/// Where the kernel's first part is in memory, and how much of it is read: 64 KiB.
const SETUP: u32 = 0x1_0000;
const SETUP_CHUNKS: usize = 2;
/// Where the command line is in that, behind the kernel's heap and stack.
const COMMAND_LINE: u16 = 0xe000;

/// Where the loader puts the initrd.
const INITRD: u32 = 0x0800_0000;

/// Where in the loader the numbers of chunks are.
const KERNEL_CHUNKS: usize = 0xc0;
const INITRD_CHUNKS: usize = 0xc2;

/// The first sector.
const LOADER: [u8; 0xc4] = [
    // xor ax, ax; ds, es, ss = ax; mov sp, 0x7c00
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c,
    // call read; mov [packet + 6], 0x1800; call read; mov [packet + 6], 0x2000
    0xe8, 0x5e, 0x00, 0xc7, 0x06, 0x86, 0x7c, 0x00, 0x18, //
    0xe8, 0x55, 0x00, 0xc7, 0x06, 0x86, 0x7c, 0x00, 0x20,
    // kernel: call copy; dec [kernel's chunks]; jnz kernel
    0xe8, 0x33, 0x00, 0xff, 0x0e, 0xc0, 0x7c, 0x75, 0xf7,
    // mov [to + 2], 0x93000000; mov [to + 7], 8
    0x66, 0xc7, 0x06, 0xaa, 0x7c, 0x00, 0x00, 0x00, 0x93, 0xc6, 0x06, 0xaf, 0x7c, 0x08,
    // initrd: call copy; dec [initrd's chunks]; jnz initrd
    0xe8, 0x1c, 0x00, 0xff, 0x0e, 0xc2, 0x7c, 0x75, 0xf7,
    // cli; ds, es, fs, gs, ss = 0x1000; mov sp, 0xe000; jmp 0x1020:0
    0xfa, 0xb8, 0x00, 0x10, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8, 0x8e, 0xd0, //
    0xbc, 0x00, 0xe0, 0xea, 0x00, 0x00, 0x20, 0x10,
    // copy: call read; mov si, table; mov cx, 0x4000; mov ah, 0x87; int 0x15; jc stop
    0xe8, 0x16, 0x00, 0xbe, 0x90, 0x7c, 0xb9, 0x00, 0x40, 0xb4, 0x87, 0xcd, 0x15, 0x72, 0x1a,
    // add dword [to + 2], 0x8000; ret
    0x66, 0x81, 0x06, 0xaa, 0x7c, 0x00, 0x80, 0x00, 0x00, 0xc3,
    // read: mov si, packet; mov ah, 0x42; int 0x13; jc stop; add dword [packet + 8], 64; ret
    0xbe, 0x80, 0x7c, 0xb4, 0x42, 0xcd, 0x13, 0x72, 0x07, 0x66, 0x83, 0x06, 0x88, 0x7c, 0x40, 0xc3,
    // stop: hlt; jmp stop
    0xf4, 0xeb, 0xfd, 0x90, // packet: 64 sectors from the second on, to 0x1000:0
    0x10, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0x10, 0x01, 0, 0, 0, 0, 0, 0, 0,
    // table: segments from 0x20000 and to 0x100000
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
    0xff, 0xff, 0x00, 0x00, 0x02, 0x93, 0x00, 0x00, //
    0xff, 0xff, 0x00, 0x00, 0x10, 0x93, 0x00, 0x00, //
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
    // The kernel's chunks, and the initrd's.
    0, 0, 0, 0,
];

/// The disk, by the x86 boot protocol of Linux (Documentation/arch/x86/boot.rst).
pub(crate) fn bootable(kernel: &Path, initrd: &Path, command_line: &str) -> Vec<u8> {
    let (kernel, initrd) = (fs::read(kernel).unwrap(), fs::read(initrd).unwrap());
    let setup_sectors = usize::from(kernel[0x1f1]);
    let (setup, kernel) = kernel.split_at((setup_sectors + 1) * SECTOR);
    let mut setup = setup.to_vec();
    let mut put = |at: usize, bytes: &[u8]| setup[at..at + bytes.len()].copy_from_slice(bytes);
    // A loader without a number; the heap may be used, up to where; what is where.
    put(0x210, &[0xff]);
    put(0x224, &(COMMAND_LINE - 0x200).to_le_bytes());
    put(0x218, &INITRD.to_le_bytes());
    put(0x21c, &u32::try_from(initrd.len()).unwrap().to_le_bytes());
    put(0x228, &(SETUP + u32::from(COMMAND_LINE)).to_le_bytes());
    setup[0x211] |= 0x80;
    setup.resize(COMMAND_LINE.into(), 0);
    setup.extend(command_line.bytes());
    setup.resize(SETUP_CHUNKS * CHUNK, 0);

    let mut disk = LOADER.to_vec();
    disk.resize(SECTOR - 2, 0);
    disk.extend([0x55, 0xaa]);
    disk.extend(setup);
    for (part, count_at) in [(kernel, KERNEL_CHUNKS), (&initrd, INITRD_CHUNKS)] {
        let chunks = part.len().div_ceil(CHUNK);
        let count = u16::try_from(chunks).unwrap().to_le_bytes();
        disk[count_at..count_at + count.len()].copy_from_slice(&count);
        let end = disk.len() + chunks * CHUNK;
        disk.extend(part);
        disk.resize(end, 0);
    }
    disk
}
