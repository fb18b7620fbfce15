//! What the command prints: aligned tables with colour on terminals only, JSON, errors, and a
//! word on stderr when something takes long.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::Serialize;

/// How text is meant; colour follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Mood {
    /// Nothing special.
    #[default]
    Plain,
    /// A heading.
    Heading,
    /// All is well.
    Good,
    /// Not well, or not yet.
    Doubtful,
    /// Wrong.
    Bad,
}

impl Mood {
    /// The terminal's code for it (ECMA-48, select graphic rendition).
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Heading => Some("\x1b[1m"),
            Self::Good => Some("\x1b[32m"),
            Self::Doubtful => Some("\x1b[33m"),
            Self::Bad => Some("\x1b[31m"),
        }
    }
}

/// Text with its mood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Cell {
    text: String,
    mood: Mood,
}

impl Cell {
    pub(crate) fn new(text: impl ToString, mood: Mood) -> Self {
        Self { text: plain(&text.to_string()), mood }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }

    fn write(&self, colour: bool, out: &mut String) {
        match self.mood.code().filter(|_| colour) {
            Some(code) => {
                out.push_str(code);
                out.push_str(&self.text);
                out.push_str("\x1b[0m");
            }
            None => out.push_str(&self.text),
        }
    }
}

/// A plain cell; `-` where there is nothing to say.
impl<T: ToString> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        Self::new(value.map_or_else(|| "-".to_owned(), |value| value.to_string()), Mood::Plain)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text, Mood::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text, Mood::Plain)
    }
}

/// Rows of cells, printed in columns two spaces apart.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

impl Table {
    /// A table with a row of headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let headings = headings.iter().map(|text| Cell::new(text, Mood::Heading)).collect();
        Self { rows: vec![headings], indent: 0 }
    }

    /// A table without headings, moved in by two spaces: names and values below a title.
    pub(crate) fn list() -> Self {
        Self { rows: Vec::new(), indent: 2 }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// A row of a name and a value.
    pub(crate) fn item(&mut self, name: &str, value: impl Into<Cell>) {
        self.row([name.into(), value.into()]);
    }

    /// The table as text, a line for each row.
    pub(crate) fn render(&self, colour: bool) -> String {
        let mut widths = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            out.extend(std::iter::repeat_n(' ', self.indent));
            let mut gap = 0;
            for (cell, width) in row.iter().zip(&widths) {
                // Spaces are written before the next text, so that no line ends in any.
                if cell.width() > 0 {
                    out.extend(std::iter::repeat_n(' ', gap));
                    gap = 0;
                    cell.write(colour, &mut out);
                }
                gap += width - cell.width() + 2;
            }
            out.push('\n');
        }
        out
    }
}

/// Text without control characters: programs of instances and other tools write much of what is
/// shown, and must not steer the terminal.
fn plain(text: &str) -> String {
    let shown = |letter: char| match letter {
        '\n' | '\r' | '\t' => ' ',
        letter if letter.is_control() => char::REPLACEMENT_CHARACTER,
        letter => letter,
    };
    text.chars().map(shown).collect()
}

/// Adds a line of plain text.
pub(crate) fn line(out: &mut String, text: impl AsRef<str>) {
    out.push_str(&plain(text.as_ref()));
    out.push('\n');
}

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    colour: bool,
}

impl Output {
    /// JSON if asked for; colour if stdout is a terminal that wants it (<https://no-color.org>).
    pub(crate) fn new(json: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self { json, colour: !unwanted && io::stdout().is_terminal() }
    }

    /// Whether results are for programs.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints a result: the value as JSON, or what `text` makes of it.
    pub(crate) fn show<T: Serialize + ?Sized>(
        self,
        value: &T,
        text: impl FnOnce(&T, bool) -> String,
    ) -> io::Result<()> {
        if self.json {
            let mut json = serde_json::to_string_pretty(value)?;
            json.push('\n');
            write(json.as_bytes())
        } else {
            write(text(value, self.colour).as_bytes())
        }
    }
}

/// Writes to stdout. A reader that has left wants no more: no error.
pub(crate) fn write(text: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Prints an error on stderr, as text or as JSON. Nothing can be done where stderr is closed.
pub(crate) fn complain<E: Serialize + std::fmt::Display>(error: &E, json: bool) {
    let text = match serde_json::to_string(error) {
        Ok(text) if json => text,
        _ => format!("netyard: {error}").lines().map(plain).collect::<Vec<_>>().join("\n"),
    };
    _ = writeln!(io::stderr(), "{text}");
}

/// Does something; says on stderr what it is once that takes longer than a second.
pub(crate) fn patiently<T>(what: &str, action: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (done, over) = mpsc::channel::<()>();
        scope.spawn(move || {
            if over.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                _ = writeln!(io::stderr(), "netyard: {what} ...");
            }
        });
        let result = action();
        drop(done);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_spaces() {
        let mut table = Table::new(&["NAME", "STATE", "PID"]);
        table.row(["web-1".into(), Cell::new("healthy", Mood::Good), Some(17).into()]);
        table.row(["é".into(), "".into(), None::<u32>.into()]);
        table.row(["a-long-name".into(), "".into(), "".into()]);
        assert_eq!(
            table.render(false),
            "NAME         STATE    PID\n\
             web-1        healthy  17\n\
             é                     -\n\
             a-long-name\n"
        );
    }

    #[test]
    fn colour_does_not_move_columns() {
        let mut table = Table::new(&["A", "B"]);
        table.row([Cell::new("bad", Mood::Bad), "x".into()]);
        assert_eq!(
            table.render(true),
            "\x1b[1mA\x1b[0m    \x1b[1mB\x1b[0m\n\x1b[31mbad\x1b[0m  x\n"
        );
    }

    #[test]
    fn what_is_shown_steers_no_terminal() {
        let foreign = "\x1b[31mred\x07\u{9b}2J\nnext\ttab";
        let clean = "\u{fffd}[31mred\u{fffd}\u{fffd}2J next tab";
        let mut table = Table::default();
        table.row([Cell::new(foreign, Mood::Bad)]);
        assert_eq!(table.render(true), format!("\x1b[31m{clean}\x1b[0m\n"));
        let mut text = String::new();
        line(&mut text, foreign);
        assert_eq!(text, format!("{clean}\n"));
    }

    #[test]
    fn lists_are_moved_in() {
        let mut list = Table::list();
        list.item("file", "yard.toml");
        list.item("keeper", Some(7));
        assert_eq!(list.render(false), "  file    yard.toml\n  keeper  7\n");
    }
}
