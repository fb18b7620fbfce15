//! The text of a configuration, as the environment variable `GONET` has it.
//!
//! Statements stand between semicolons; a statement is a keyword and pairs `key=value`, with spaces
//! between. Nothing is quoted. Every text that any generation of the original took is taken, with the
//! same meaning; where the original took what is most likely a mistake, there is a warning. A route
//! with the longest prefix wins here, wherever it stands.

mod statements;

use std::fmt;

use crate::config::Config;

/// The environment variables that hold a configuration; the first that is set counts.
pub const VARIABLES: [&str; 2] = ["NETYARD_STACK", "GONET"];

/// Numbers of the original end below this.
const MAX_NUMBER: u32 = 0x00ff_ffff;
/// What statements are known, with their keys.
const KNOWN: [(&str, &str); 6] = [
    ("verbose", "none"),
    ("nic", "id, ether, mtu, fd, dev, sniff, pcap, offload, queues"),
    ("ip", "nic, addr"),
    ("route", "nic, ipnet, gw"),
    ("dns", "ip, search, ndots, timeout, attempts, hosts"),
    ("tcp", "cc, rmem, wmem, rto_min"),
];

/// Something to say about one place of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Which statement, from 1.
    pub statement: usize,
    /// Its keyword.
    pub keyword: String,
    /// Which key of it; empty where the whole statement is meant.
    pub key: String,
    /// Where, in characters from the beginning of the text, from 1.
    pub column: usize,
    /// What is wrong, and what is wanted.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { statement, keyword, key, column, message } = self;
        write!(f, "statement {statement} (`{keyword}`), ")?;
        if !key.is_empty() {
            write!(f, "key `{key}`, ")?;
        }
        write!(f, "column {column}: {message}")
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notes(pub Vec<Note>);

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(notes) = self;
        for (place, note) in notes.iter().enumerate() {
            write!(f, "{}{note}", if place == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Notes {}

/// A configuration that was read, with what is most likely a mistake in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// What was taken, though it looks wrong.
    pub warnings: Vec<Note>,
}

impl Config {
    /// Reads the first of [`VARIABLES`] that is set and not empty; `None` if none is.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn from_environment() -> Result<Option<Parsed>, Notes> {
        let set = |name| std::env::var(name).ok().filter(|text: &String| !text.trim().is_empty());
        VARIABLES.into_iter().find_map(set).map(|text| Self::parse(&text)).transpose()
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Parsed, Notes> {
        let mut reader = Reader::default();
        let mut column = 1;
        for statement in text.split(';') {
            let blank = |letter: char| matches!(letter, ' ' | '\t' | '\r' | '\n');
            let before = statement.chars().take_while(|letter| blank(*letter)).count();
            let trimmed = statement.trim_matches(blank);
            if !trimmed.is_empty() {
                reader.read(trimmed, column + before);
            }
            column += statement.chars().count() + 1;
        }
        let Reader { config, warnings, errors, .. } = reader;
        if errors.is_empty() { Ok(Parsed { config, warnings }) } else { Err(Notes(errors)) }
    }
}

/// One pair of a statement.
#[derive(Debug, Clone, Copy)]
struct Pair<'a> {
    key: &'a str,
    value: &'a str,
    column: usize,
}

#[derive(Debug, Default)]
struct Reader {
    config: Config,
    warnings: Vec<Note>,
    errors: Vec<Note>,
    /// The statement that is being read: its number, keyword and column.
    statement: usize,
    keyword: String,
    column: usize,
}

impl Reader {
    fn read(&mut self, text: &str, column: usize) {
        let mut at = column;
        let mut words = text.split(' ').map(|word| {
            let start = at;
            at += word.chars().count() + 1;
            (word, start)
        });
        let keyword = words.next().map_or("", |(keyword, _)| keyword);
        self.statement += 1;
        (self.keyword, self.column) = (keyword.to_owned(), column);
        let pairs: Vec<Pair<'_>> = words
            .filter(|(word, _)| !word.is_empty())
            .map(|(word, column)| {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                Pair { key, value, column }
            })
            .collect();
        match keyword {
            "verbose" => self.verbose(&pairs),
            "nic" => self.nic(&pairs),
            "ip" => self.ip(&pairs),
            "route" => self.route(&pairs),
            "dns" => self.dns(&pairs),
            "tcp" => self.tcp(&pairs),
            _ => {
                let known = KNOWN.map(|(keyword, _)| keyword).join(", ");
                self.fail(None, format!("unknown keyword; known are {known}"));
            }
        }
    }

    fn note(&self, pair: Option<&Pair<'_>>, message: String) -> Note {
        Note {
            statement: self.statement,
            keyword: self.keyword.clone(),
            key: pair.map_or_else(String::new, |pair| pair.key.to_owned()),
            column: pair.map_or(self.column, |pair| pair.column),
            message,
        }
    }

    fn fail(&mut self, pair: Option<&Pair<'_>>, message: impl Into<String>) {
        self.errors.push(self.note(pair, message.into()));
    }

    fn warn(&mut self, pair: &Pair<'_>, message: impl Into<String>) {
        self.warnings.push(self.note(Some(pair), message.into()));
    }

    fn fail_value(&mut self, pair: &Pair<'_>, wanted: &str) {
        self.fail(Some(pair), format!("{wanted} is wanted, found `{}`", pair.value));
    }

    fn unknown(&mut self, pair: &Pair<'_>) {
        let keys = KNOWN.iter().find(|(keyword, _)| *keyword == self.keyword);
        let keys = keys.map_or("none", |(_, keys)| keys);
        self.fail(Some(pair), format!("unknown key; `{}` has {keys}", self.keyword));
    }

    /// Warns of a key that was there before: the last one counts, as in the original.
    fn once(&mut self, pair: &Pair<'_>, pairs: &[Pair<'_>]) {
        if pairs.iter().any(|other| other.key == pair.key && other.column < pair.column) {
            self.warn(pair, "given twice; the last one counts");
        }
    }

    /// A number: what follows the digits does not count, with a warning.
    fn number(&mut self, pair: &Pair<'_>) -> Option<u32> {
        let end = pair.value.find(|letter: char| !letter.is_ascii_digit());
        let (digits, rest) = pair.value.split_at(end.unwrap_or(pair.value.len()));
        let number = digits.parse().ok().filter(|number| *number < MAX_NUMBER);
        if number.is_none() {
            let found = pair.value;
            self.fail(
                Some(pair),
                format!("a number below {MAX_NUMBER} is wanted, found `{found}`"),
            );
        } else if !rest.is_empty() {
            self.warn(pair, format!("`{rest}` behind the number does not count"));
        }
        number
    }
}
