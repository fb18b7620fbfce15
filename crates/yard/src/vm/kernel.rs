//! The guest's kernel: an image of the host's or one that is named, and the modules that belong to
//! it, in the order in which they must be loaded.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use netyard_sys::module;

use crate::error::{ErrorKind, YardError};

/// Where distributions keep kernels, and modules by the kernel's release.
const IMAGES: &str = "/boot";
const MODULES: &str = "/lib/modules";

/// How kernels are called there, before their release.
const IMAGE_PREFIX: &str = "vmlinuz-";

/// How to get one.
const INSTALL: &str = "install one (Debian: apt install linux-image-cloud-amd64), or name one with \
                       --kernel or `kernel`";

/// Longest module, decompressed, bytes.
const MAX_MODULE: u64 = 64 << 20;

/// A kernel with its modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kernel {
    /// A bzImage.
    pub(super) image: PathBuf,
    /// What it calls itself: `6.1.0-32-cloud-amd64`.
    pub(super) release: String,
    /// The folder with its `modules.dep`; may not be there.
    modules: PathBuf,
}

/// A module that is ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    /// Its name: `virtio_net`.
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

impl Kernel {
    /// The kernel of that image.
    pub(super) fn at(image: &Path) -> Result<Self, YardError> {
        let wanted = || format!("use the kernel {}", image.display());
        let mut start = Vec::new();
        File::open(image).and_then(|file| file.take(START).read_to_end(&mut start)).map_err(
            |error| {
                let refused = error.kind() == io::ErrorKind::PermissionDenied;
                let error = YardError::io(wanted(), &error);
                let open = format!("let it be read (sudo chmod a+r {}), or ", image.display());
                let open = if refused { open } else { String::new() };
                error.next(format!("{open}{INSTALL}"))
            },
        )?;
        let release = release(&start).ok_or_else(|| {
            let found = "it is no bzImage: the file that distributions call vmlinuz";
            YardError::new(ErrorKind::Input, wanted(), found).next(INSTALL)
        })?;
        // A kernel that was unpacked beside its modules, or one of the host's.
        let beside = image
            .parent()
            .and_then(Path::parent)
            .map(|root| root.join(MODULES.trim_start_matches('/')).join(&release));
        let modules = beside
            .filter(|folder| folder.is_dir())
            .unwrap_or_else(|| Path::new(MODULES).join(&release));
        Ok(Self { image: image.to_owned(), release, modules })
    }

    /// The host's kernel that suits best: the running one, one made for virtual machines, the
    /// newest.
    pub(super) fn of_host() -> Result<Self, YardError> {
        let running = module::running_kernel().unwrap_or_default();
        Self::best_in(Path::new(IMAGES), &running)
    }

    fn best_in(folder: &Path, running: &str) -> Result<Self, YardError> {
        let wanted = "find a kernel for virtual machines";
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let images: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(IMAGE_PREFIX))
            .map(|entry| entry.path())
            .collect();
        if images.is_empty() {
            let found = format!("there is none in {}", folder.display());
            return Err(YardError::new(ErrorKind::Unknown, wanted, found).next(INSTALL));
        }
        let (mut kernels, mut errors) = (Vec::new(), Vec::new());
        for image in &images {
            match Self::at(image) {
                Ok(kernel) => kernels.push(kernel),
                Err(error) => errors.push(error),
            }
        }
        let rank = |kernel: &Self| {
            let cloud = kernel.release.contains("cloud") || kernel.release.contains("kvm");
            let own = kernel.release == running;
            (kernel.modules.is_dir(), own, cloud, version(&kernel.release))
        };
        let best = kernels.into_iter().max_by_key(rank);
        best.ok_or_else(|| {
            let nothing = YardError::new(ErrorKind::Unknown, wanted, "none can be used");
            errors.into_iter().next().unwrap_or(nothing)
        })
    }

    /// The modules for these drivers and what they need, in the order of loading. What is built
    /// into the kernel is left out.
    pub(super) fn modules(&self, drivers: &[&str]) -> Result<Vec<Module>, YardError> {
        let wanted = || format!("find the virtio modules of kernel {}", self.release);
        let missing = |found: String| {
            YardError::new(ErrorKind::Unknown, wanted(), found).next(format!(
                "install the modules that belong to {} (they come with its package), or choose \
                 another kernel with --kernel or `kernel`",
                self.image.display()
            ))
        };
        if !self.modules.is_dir() {
            return Err(missing(format!("there is no folder {}", self.modules.display())));
        }
        let list = |name: &str| fs::read_to_string(self.modules.join(name)).unwrap_or_default();
        let (dependencies, built_in) = (list("modules.dep"), list("modules.builtin"));
        let tree = Tree::parse(&dependencies, &built_in);
        let paths = tree.in_order(drivers).map_err(|name| {
            missing(format!("there is no module {name} in {}", self.modules.display()))
        })?;
        paths
            .into_iter()
            .map(|(name, path)| {
                let path = self.modules.join(path);
                let bytes = read_module(&path).map_err(|error| {
                    YardError::io(format!("read the module {}", path.display()), &error)
                })?;
                Ok(Module { name, bytes })
            })
            .collect()
    }
}

/// How much of an image is read: its header, and the text that names its release.
const START: u64 = 64 * 1024;

/// The release that a bzImage says it is: the kernel's Documentation/arch/x86/boot.rst,
/// `kernel_version`.
fn release(start: &[u8]) -> Option<String> {
    const MAGIC_AT: usize = 0x202;
    const VERSION_AT: usize = 0x20e;
    if start.get(MAGIC_AT..)?.get(..4)? != b"HdrS" {
        return None;
    }
    let place = start.get(VERSION_AT..)?.first_chunk()?;
    let text = start.get(usize::from(u16::from_le_bytes(*place)) + 0x200..)?;
    let word = text.split(|byte| matches!(byte, 0 | b' ')).next()?;
    let word = std::str::from_utf8(word).ok()?;
    // It becomes part of a path.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~');
    let good = word.starts_with(|c: char| c.is_ascii_digit()) && word.chars().all(plain);
    good.then(|| word.to_owned())
}

/// The numbers in a release, for comparing: 6.10 is newer than 6.9.
fn version(release: &str) -> Vec<u64> {
    let words = release.split(|c: char| !c.is_ascii_digit());
    words.filter_map(|word| word.parse().ok()).collect()
}

/// The modules of a kernel and what each needs.
struct Tree<'t> {
    /// By name: the file, and the names of what it needs.
    modules: BTreeMap<String, (&'t str, Vec<String>)>,
    built_in: Vec<String>,
}

impl<'t> Tree<'t> {
    /// Reads `modules.dep` (`FILE: FILE FILE`) and `modules.builtin` (`FILE`).
    fn parse(dependencies: &'t str, built_in: &str) -> Self {
        let modules = dependencies.lines().filter_map(|line| {
            let (file, needs) = line.split_once(':')?;
            Some((name(file), (file, needs.split_whitespace().map(name).collect())))
        });
        Self { modules: modules.collect(), built_in: built_in.lines().map(name).collect() }
    }

    /// Name and file of each module that the drivers need, each after those that it needs itself.
    fn in_order(&self, drivers: &[&str]) -> Result<Vec<(String, &'t str)>, String> {
        let mut order = Vec::new();
        let mut begun = Vec::new();
        for driver in drivers {
            self.visit(&name(driver), &mut begun, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        begun: &mut Vec<String>,
        order: &mut Vec<(String, &'t str)>,
    ) -> Result<(), String> {
        if begun.iter().any(|other| other == name) {
            return Ok(());
        }
        begun.push(name.to_owned());
        let Some((file, needs)) = self.modules.get(name) else {
            let built_in = self.built_in.iter().any(|other| other == name);
            return if built_in { Ok(()) } else { Err(name.to_owned()) };
        };
        for need in needs {
            self.visit(need, begun, order)?;
        }
        order.push((name.to_owned(), file));
        Ok(())
    }
}

/// The name of a module's file: without folders and endings; `-` means `_`.
fn name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

/// Reads a module, decompressed as its name says.
fn read_module(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = fs::read(path)?;
    let limited = |from: &mut dyn Read| -> io::Result<Vec<u8>> {
        let mut module = Vec::new();
        from.take(MAX_MODULE).read_to_end(&mut module)?;
        Ok(module)
    };
    let broken = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("zst") => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(bytes.as_slice());
            limited(&mut decoder.map_err(|error| broken(error.to_string()))?)
        }
        Some("xz") => {
            let mut module = Vec::new();
            lzma_rs::xz_decompress(&mut bytes.as_slice(), &mut module)
                .map_err(|error| broken(format!("{error:?}")))?;
            Ok(module)
        }
        Some("gz") => limited(&mut flate2::read::GzDecoder::new(bytes.as_slice())),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A bzImage as far as it is read here.
    fn image(release: &str) -> Vec<u8> {
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        image.extend(format!("{release} (builder@host) #1 SMP\0").bytes());
        image
    }

    #[test]
    fn an_image_says_its_release() {
        assert_eq!(release(&image("6.1.0-32-cloud-amd64")).unwrap(), "6.1.0-32-cloud-amd64");
        assert_eq!(release(&image("../../etc")), None);
        assert_eq!(release(&image("6.1/..")), None);
        let whole = image("6.1.0");
        for len in [0, 0x202, 0x20e, 0x210, 0x300] {
            assert_eq!(release(&whole[..len]).filter(|it| !it.is_empty()), None, "{len}");
        }
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let tree = Tree::parse(
            "kernel/a/virtio-net.ko.xz: kernel/b/failover.ko.xz kernel/c/virtio.ko.xz\n\
             kernel/b/failover.ko.xz:\n\
             kernel/c/virtio.ko.xz: kernel/c/virtio_ring.ko.xz\n\
             kernel/c/virtio_ring.ko.xz:\n\
             kernel/d/one.ko: kernel/d/other.ko\n\
             kernel/d/other.ko: kernel/d/one.ko\n",
            "kernel/e/virtio_mmio.ko\n",
        );
        let order = |drivers: &[&str]| -> Result<Vec<String>, String> {
            Ok(tree.in_order(drivers)?.into_iter().map(|(name, _)| name).collect())
        };
        let expected = ["failover", "virtio_ring", "virtio", "virtio_net"].map(str::to_owned);
        assert_eq!(order(&["virtio_mmio", "virtio_net"]).unwrap(), expected);
        assert_eq!(order(&["virtio_blk"]), Err("virtio_blk".to_owned()));
        assert_eq!(order(&["one"]).unwrap(), ["other", "one"].map(str::to_owned));
    }

    #[test]
    fn the_best_kernel_has_modules_and_is_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path().join("boot");
        fs::create_dir(&boot).unwrap();
        let none = Kernel::best_in(&boot, "x").unwrap_err();
        assert_eq!(none.kind, ErrorKind::Unknown);
        assert!(none.to_string().contains("linux-image-cloud-amd64"), "{none}");

        for release in ["6.9.0-amd64", "6.10.0-amd64", "6.11.0-amd64", "6.1.0-cloud-amd64"] {
            fs::write(boot.join(format!("vmlinuz-{release}")), image(release)).unwrap();
        }
        fs::write(boot.join("vmlinuz-broken"), "text").unwrap();
        for release in ["6.9.0-amd64", "6.10.0-amd64"] {
            fs::create_dir_all(folder.path().join("lib/modules").join(release)).unwrap();
        }
        let best = |running: &str| Kernel::best_in(&boot, running).unwrap().release;
        assert_eq!(best("none"), "6.10.0-amd64");
        assert_eq!(best("6.9.0-amd64"), "6.9.0-amd64");
        fs::create_dir_all(folder.path().join("lib/modules/6.1.0-cloud-amd64")).unwrap();
        assert_eq!(best("none"), "6.1.0-cloud-amd64");
        assert_eq!(best("6.9.0-amd64"), "6.9.0-amd64");
    }

    #[test]
    fn missing_modules_are_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vmlinuz");
        fs::write(&path, image("1.2.3-nobody-has-this")).unwrap();
        let kernel = Kernel::at(&path).unwrap();
        let error = kernel.modules(&["virtio_net"]).unwrap_err().to_string();
        assert!(error.contains("/lib/modules/1.2.3-nobody-has-this"), "{error}");
        assert!(error.contains("next: install the modules"), "{error}");
        assert!(Kernel::at(Path::new("/no/such")).is_err());
        fs::write(&path, "text").unwrap();
        assert_eq!(Kernel::at(&path).unwrap_err().kind, ErrorKind::Input);
    }

    #[test]
    fn compressed_modules_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let module = b"\x7fELF and so on".repeat(100);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&module).unwrap();
        let mut xz = Vec::new();
        lzma_rs::xz_compress(&mut module.as_slice(), &mut xz).unwrap();
        let zstd = ruzstd::encoding::compress_to_vec(
            module.as_slice(),
            ruzstd::encoding::CompressionLevel::Fastest,
        );
        let files = [
            ("m.ko", module.clone()),
            ("m.ko.gz", gzip.finish().unwrap()),
            ("m.ko.xz", xz),
            ("m.ko.zst", zstd),
        ];
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::write(&path, &bytes).unwrap();
            assert_eq!(read_module(&path).unwrap(), module, "{name}");
            if name != "m.ko" {
                fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
                assert!(read_module(&path).is_err(), "half of {name}");
            }
        }
    }
}
