//! The answer with a file: its head as a backend would have sent it, and the part of the file that follows.

use std::time::SystemTime;

use super::SelectedFile;
use super::source::FileSource;
use uh_http1::conditional::{Selection, Validators, select};
use uh_http1::date;
use uh_http1::field::{write_field, write_number};

/// An answer with a file, or about one.
pub(crate) struct FileAnswer {
    /// Status line and fields.
    pub head: Vec<u8>,
    /// The part of the file that follows, if one does.
    pub body: FileSource,
}

/// Answers a `GET` or `HEAD` with this head.
pub(crate) fn answer(file: SelectedFile, request: &[u8], head_only: bool, now: SystemTime) -> FileAnswer {
    let state = file.opened.state;
    let (etag, modified_text) = (state.etag(), date::text(state.modified_second()));
    let of = Validators {
        etag: &etag,
        modified: state.modified(),
        modified_text: &modified_text,
        length: state.length,
    };
    let selection = select(request, &of, !head_only, now);
    let mut head = Vec::with_capacity(320);
    head.extend_from_slice(b"HTTP/1.1 ");
    head.extend_from_slice(status_line(&selection).as_bytes());
    head.extend_from_slice(b"\r\n");
    let part = match &selection {
        Selection::Whole => Some(0..state.length),
        Selection::Part(part) => Some(part.clone()),
        Selection::NotModified | Selection::Failed | Selection::Unsatisfiable => None,
    };
    if part.is_some() {
        write_field(&mut head, b"Content-Type", file.media_type.as_bytes());
        if let Some(coding) = file.coding {
            write_field(&mut head, b"Content-Encoding", coding.name().as_bytes());
        }
        write_field(&mut head, b"Accept-Ranges", b"bytes");
    }
    if !matches!(selection, Selection::Failed | Selection::Unsatisfiable) {
        write_field(&mut head, b"ETag", etag.as_bytes());
        write_field(&mut head, b"Last-Modified", modified_text.as_bytes());
        if file.varies {
            write_field(&mut head, b"Vary", b"Accept-Encoding");
        }
    }
    write_length(&selection, state.length, &mut head);
    head.extend_from_slice(b"\r\n");
    FileAnswer { head, body: FileSource::new(file.opened, part.unwrap_or_default()) }
}

fn status_line(selection: &Selection) -> &'static str {
    match selection {
        Selection::Whole => "200 OK",
        Selection::Part(_) => "206 Partial Content",
        Selection::NotModified => "304 Not Modified",
        Selection::Failed => "412 Precondition Failed",
        Selection::Unsatisfiable => "416 Range Not Satisfiable",
    }
}

fn write_length(selection: &Selection, whole: u64, head: &mut Vec<u8>) {
    let length = match selection {
        Selection::Whole => whole,
        Selection::Part(part) => {
            head.extend_from_slice(b"Content-Range: bytes ");
            write_number(head, part.start);
            head.push(b'-');
            write_number(head, part.end - 1);
            head.push(b'/');
            write_number(head, whole);
            head.extend_from_slice(b"\r\n");
            part.end - part.start
        }
        Selection::NotModified => return,
        Selection::Failed => 0,
        Selection::Unsatisfiable => {
            head.extend_from_slice(b"Content-Range: bytes */");
            write_number(head, whole);
            head.extend_from_slice(b"\r\n");
            0
        }
    };
    head.extend_from_slice(b"Content-Length: ");
    write_number(head, length);
    head.extend_from_slice(b"\r\n");
}
