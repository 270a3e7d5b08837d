//! A client that speaks HTTP/2 in frames made by hand, and doesn't allocate between its calls.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::connect;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An empty SETTINGS frame, and the acknowledgement of one.
const SETTINGS: [[u8; 9]; 2] = [[0, 0, 0, 4, 0, 0, 0, 0, 0], [0, 0, 0, 4, 1, 0, 0, 0, 0]];

/// Lets the connection carry as much as there may be.
const WINDOW: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0];

/// A frame's head, and in it the type of a HEADERS frame, and the flags of its last on a stream.
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// One connection.
pub(crate) struct Http2Caller {
    stream: TcpStream,
    /// The header list of each request.
    block: Vec<u8>,
    /// The next stream.
    next: u32,
    out: Vec<u8>,
    buffer: Vec<u8>,
    held: usize,
}

impl Http2Caller {
    pub(crate) fn new(address: SocketAddr, fields: &[(&str, &str)]) -> Self {
        let mut stream = connect(address);
        let [settings, acknowledged] = SETTINGS;
        stream.write_all(&[PREFACE, &settings, &acknowledged, &WINDOW].concat()).unwrap();
        let block = fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
        Self { stream, block, next: 1, out: Vec::with_capacity(4096), buffer: vec![0; 64 << 10], held: 0 }
    }

    /// Sends so many requests at once, and waits for all answers.
    pub(crate) fn call(&mut self, streams: u64) {
        self.out.clear();
        for _ in 0..streams {
            let length = u16::try_from(self.block.len()).unwrap().to_be_bytes();
            self.out.extend([0, length[0], length[1], HEADERS, END_HEADERS | END_STREAM]);
            self.out.extend(self.next.to_be_bytes());
            self.out.extend(&self.block);
            self.next += 2;
        }
        self.stream.write_all(&self.out).unwrap();
        let mut ended = 0;
        while ended < streams {
            let read = self.stream.read(&mut self.buffer[self.held..]).unwrap();
            assert!(read > 0, "uh-proxy closed the connection");
            self.held += read;
            ended += self.ended();
        }
    }

    /// Takes the frames that have arrived. Returns how many streams they end.
    fn ended(&mut self) -> u64 {
        let (mut at, mut ended) = (0, 0);
        while let Some([_, a, b, kind, flags, ..]) = self.buffer[at..self.held].first_chunk::<HEAD>() {
            let frame = HEAD + usize::from(u16::from_be_bytes([*a, *b]));
            assert_ne!(*kind, RST_STREAM, "a stream was reset");
            if self.held - at < frame {
                break;
            }
            ended += u64::from(*kind <= HEADERS && flags & END_STREAM != 0);
            at += frame;
        }
        self.buffer.copy_within(at..self.held, 0);
        self.held -= at;
        ended
    }
}

/// A field that isn't indexed (RFC 7541 §6.2.2).
fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}
