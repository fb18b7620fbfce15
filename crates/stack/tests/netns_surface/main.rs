//! The same program text on the standard library's and tokio's sockets, which are the kernel's, and on those of
//! the stack: it builds with both, and both do what it says.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::env;
use std::future::Future;
use std::process::Command;
use std::time::Duration;

use netyard_testbed::{isolate, peer, run};

/// Far above what anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// As the kernel's card: 10.0.0.1, and no way further.
const STACK: &str = "nic id=1 ether=02:00:00:00:00:01 dev=tap0; ip nic=1 addr=10.0.0.1/24";

mod kernel {
    pub(crate) mod blocking {
        pub(crate) use std::net;
        include!("blocking.rs");
    }
    pub(crate) mod asynchronous {
        use tokio::net;
        include!("asynchronous.rs");
    }
}

mod stack {
    pub(crate) mod blocking {
        pub(crate) use netyard_stack::blocking as net;
        include!("blocking.rs");
    }
    pub(crate) mod asynchronous {
        use netyard_stack::asynchronous as net;
        include!("asynchronous.rs");
    }
}

fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, future).await.unwrap() });
}

/// Runs `text` in a process that has a card of the kernel's.
fn by_the_kernel(text: fn()) {
    for arguments in
        ["link add card0 type bridge", "address add 10.0.0.1/24 dev card0", "link set card0 up"]
    {
        run(Command::new(peer("ip")).args(arguments.split(' ')));
    }
    text();
}

/// Runs `text` in a process whose stack is described by its environment: this test once more.
fn by_the_stack(text: fn()) {
    if env::var_os("NETYARD_STACK").is_some() {
        return text();
    }
    let program = env::current_exe().unwrap();
    run(Command::new(program).args(env::args_os().skip(1)).env("NETYARD_STACK", STACK));
}

#[test]
fn calls_that_wait_are_the_standard_librarys() {
    isolate(|| by_the_kernel(kernel::blocking::everything));
}

#[test]
fn calls_that_wait_are_the_stacks() {
    isolate(|| by_the_stack(stack::blocking::everything));
}

#[test]
fn calls_that_are_awaited_are_tokios() {
    isolate(|| by_the_kernel(|| block_on(kernel::asynchronous::everything())));
}

#[test]
fn calls_that_are_awaited_are_the_stacks() {
    isolate(|| by_the_stack(|| block_on(stack::asynchronous::everything())));
}
