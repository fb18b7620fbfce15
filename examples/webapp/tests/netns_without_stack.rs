//! The same program text, built without the stack: the kernel serves its page.

#![cfg(not(feature = "stack"))]

use std::process::Command;

use netyard_testbed::{Background, isolate, peer, run};

#[test]
fn its_page_comes_by_the_kernel() {
    isolate(|| {
        let mut webapp = Command::new(env!("CARGO_BIN_EXE_webapp"));
        // What describes a stack means nothing to it.
        let app = Background::start(webapp.arg("127.0.0.1:8080").env("GONET", "nonsense"));
        let mut curl = Command::new(peer("curl"));
        curl.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]);
        curl.args(["--retry", "20", "--retry-connrefused", "--retry-delay", "1"]);
        let url = "http://127.0.0.1:8080";
        let page = run(curl.args([url, &format!("{url}/lookup/localhost")]));
        assert!(page.contains("This is page 1, and it came by the kernel."), "{page}");
        assert!(page.contains("127.0.0.1\n"), "{page}");
        drop(app);
    });
}
