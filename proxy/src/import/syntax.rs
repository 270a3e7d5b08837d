//! nginx's grammar: words, quotes, `;`, `{}`, `#` and `\`. Variables are text. Pure: no file is read here.
//!
//! As nginx reads it (`ngx_conf_read_token`), apart from the bodies of Lua blocks, which are skipped as a whole.

use std::fmt;
use std::rc::Rc;

/// Deeper than any real configuration, and shallow enough for the stack.
const MAX_NESTING: usize = 32;

/// Where a directive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: Rc<str>,
    pub(super) line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// `name args;` or `name args { block }`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directive {
    /// Its number among all directives, once all files are read.
    pub(super) id: usize,
    pub(super) place: Place,
    pub(super) name: String,
    pub(super) args: Vec<String>,
    pub(super) block: Option<Block>,
}

/// What stands between `{` and `}`, or in a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Block {
    pub(super) directives: Vec<Directive>,
    /// With their text after `#`. A server that is commented out may be the other backend.
    pub(super) comments: Vec<(Place, String)>,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub(super) struct SyntaxError {
    pub(super) place: Place,
    pub(super) reason: &'static str,
}

impl Directive {
    /// The argument with this number, or nothing.
    pub(super) fn arg(&self, number: usize) -> &str {
        self.args.get(number).map_or("", String::as_str)
    }

    /// The directives in its block.
    pub(super) fn inner(&self) -> &[Directive] {
        self.block.as_ref().map_or(&[], |block| &block.directives)
    }

    /// All arguments as they would be written.
    pub(super) fn line(&self) -> String {
        self.args.iter().fold(quoted(&self.name), |line, arg| line + " " + &quoted(arg))
    }
}

/// As nginx would read it again.
impl fmt::Display for Directive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())?;
        match &self.block {
            None => f.write_str(";\n"),
            Some(block) => {
                f.write_str(" {\n")?;
                block.directives.iter().try_for_each(|directive| write!(f, "{directive}"))?;
                f.write_str("}\n")
            }
        }
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| !c.is_ascii_whitespace() && !matches!(c, ';' | '{' | '}' | '"' | '\'' | '\\' | '#');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text + "\""
}

/// Reads a file's text.
pub(super) fn parse(file: &Rc<str>, text: &str) -> Result<Block, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Reader { file, rest: text, line: 1 }.block(0)
}

/// What a token is.
enum Token {
    Word(String),
    Semicolon,
    Open,
    Close,
    Comment(String),
    End,
}

struct Reader<'a> {
    file: &'a Rc<str>,
    rest: &'a str,
    line: u32,
}

impl Reader<'_> {
    fn place(&self) -> Place {
        Place { file: Rc::clone(self.file), line: self.line }
    }

    fn error<T>(&self, reason: &'static str) -> Result<T, SyntaxError> {
        Err(SyntaxError { place: self.place(), reason })
    }

    fn block(&mut self, depth: usize) -> Result<Block, SyntaxError> {
        let mut block = Block::default();
        let mut words: Vec<String> = Vec::new();
        let mut begin = self.place();
        loop {
            let token = self.token()?;
            match token {
                Token::Comment(text) => block.comments.push((self.place(), text)),
                Token::Word(word) => {
                    if words.is_empty() {
                        begin = self.place();
                    }
                    words.push(word);
                }
                Token::Semicolon | Token::Open if words.is_empty() => {
                    return self.error("expected the name of a directive");
                }
                Token::Semicolon => block.directives.push(directive(&mut words, begin.clone(), None)),
                Token::Open if words[0].ends_with("_by_lua_block") => {
                    self.skip_lua()?;
                    block.directives.push(directive(&mut words, begin.clone(), Some(Block::default())));
                }
                Token::Open if depth == MAX_NESTING => return self.error("blocks are nested too deeply"),
                Token::Open => {
                    let inner = self.block(depth + 1)?;
                    block.directives.push(directive(&mut words, begin.clone(), Some(inner)));
                }
                Token::Close | Token::End if !words.is_empty() => {
                    return Err(SyntaxError { place: begin, reason: "expected ; or { after this directive" });
                }
                Token::Close if depth == 0 => return self.error("this } closes nothing"),
                Token::End if depth > 0 => return self.error("the file ends, but a } is missing"),
                Token::Close | Token::End => return Ok(block),
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        self.line += u32::from(c == '\n');
        Some(c)
    }

    fn token(&mut self) -> Result<Token, SyntaxError> {
        while self.rest.starts_with(|c: char| c.is_ascii_whitespace()) {
            self.next();
        }
        let Some(first) = self.rest.chars().next() else { return Ok(Token::End) };
        if first == '#' {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            let (comment, rest) = self.rest.split_at(end);
            self.rest = rest;
            return Ok(Token::Comment(comment.trim_start_matches('#').trim().to_owned()));
        }
        let single = match first {
            ';' => Token::Semicolon,
            '{' => Token::Open,
            '}' => Token::Close,
            '"' | '\'' => return self.quoted_word(first),
            _ => return Ok(Token::Word(self.word())),
        };
        self.next();
        Ok(single)
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.rest.chars().next() {
            let opens_variable = c == '{' && word.ends_with('$');
            if c.is_ascii_whitespace() || c == ';' || (c == '{' && !opens_variable) {
                break;
            }
            self.next();
            if c == '\\' { self.escape(&mut word) } else { word.push(c) }
        }
        word
    }

    fn quoted_word(&mut self, quote: char) -> Result<Token, SyntaxError> {
        let begin = self.place();
        self.next();
        let mut word = String::new();
        loop {
            match self.next() {
                None => return Err(SyntaxError { place: begin, reason: "this quote isn't closed" }),
                Some(c) if c == quote => break,
                Some('\\') => self.escape(&mut word),
                Some(c) => word.push(c),
            }
        }
        if !self.rest.is_empty() && !self.rest.starts_with([' ', '\t', '\r', '\n', ';', '{', ')']) {
            return self.error("expected a space or ; after the closing quote");
        }
        Ok(Token::Word(word))
    }

    /// What follows a backslash. Unknown escapes keep it, because most of them belong to a regular expression.
    fn escape(&mut self, word: &mut String) {
        match self.next() {
            Some(c @ ('"' | '\'' | '\\')) => word.push(c),
            Some('t') => word.push('\t'),
            Some('r') => word.push('\r'),
            Some('n') => word.push('\n'),
            Some(c) => word.extend(['\\', c]),
            None => word.push('\\'),
        }
    }

    /// Skips Lua code up to its `}`.
    fn skip_lua(&mut self) -> Result<(), SyntaxError> {
        let begin = self.place();
        let mut depth = 1_usize;
        while let Some(c) = self.next() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => return Ok(()),
                '}' => depth -= 1,
                '-' if self.rest.starts_with('-') => while self.next().is_some_and(|c| c != '\n') {},
                '"' | '\'' => self.skip_lua_string(c),
                _ => {}
            }
        }
        Err(SyntaxError { place: begin, reason: "the file ends within this Lua block" })
    }

    fn skip_lua_string(&mut self, quote: char) {
        while let Some(c) = self.next() {
            match c {
                '\\' => drop(self.next()),
                c if c == quote || c == '\n' => return,
                _ => {}
            }
        }
    }
}

fn directive(words: &mut Vec<String>, place: Place, block: Option<Block>) -> Directive {
    let name = words.remove(0);
    Directive { id: 0, place, name, args: std::mem::take(words), block }
}

#[cfg(test)]
mod tests;
