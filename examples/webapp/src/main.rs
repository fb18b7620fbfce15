//! A web server. Its text does not say whose network it uses: that is chosen when it is built.

use std::env;
use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use netyard_stack::tokio::net::{TcpListener, lookup_host};

/// Where it listens unless its argument says otherwise.
const ADDRESS: &str = "0.0.0.0:8080";

/// Pages that were served.
static PAGES: AtomicU64 = AtomicU64::new(0);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let address = env::args().nth(1).unwrap_or_else(|| ADDRESS.to_owned());
    match serve(&address).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use io::Write as _;
            // Who closed standard error wants no message.
            let _ = writeln!(io::stderr(), "webapp: cannot serve on {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let app = Router::new()
        .route("/", get(page))
        .route("/style.css", get(style))
        .route("/lookup/{name}", get(lookup));
    axum::serve(listener, app).await
}

async fn page() -> Html<String> {
    let count = PAGES.fetch_add(1, Ordering::Relaxed) + 1;
    let network = if cfg!(feature = "stack") { "a stack of its own" } else { "the kernel" };
    Html(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<title>webapp</title>\n\
         <link rel=\"stylesheet\" href=\"/style.css\">\n</head>\n<body>\n<h1>Hello</h1>\n\
         <p>This is page {count}, and it came by {network}.</p>\n</body>\n</html>\n"
    ))
}

async fn style() -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/css")],
        "body { font-family: sans-serif; margin: 4em auto; width: 30em }\n",
    )
}

/// The addresses of a name, one a line.
async fn lookup(Path(name): Path<String>) -> Result<String, (StatusCode, String)> {
    let found = lookup_host((name.as_str(), 0)).await;
    let found = found.map_err(|error| (StatusCode::NOT_FOUND, format!("{error}\n")))?;
    Ok(found.map(|address| format!("{}\n", address.ip())).collect())
}
