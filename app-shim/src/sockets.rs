//! Counts an app's TCP connections from the kernel's tables, for `--supervise-only`.

use std::fs;
use std::io;

/// The tables of this process's network namespace, which the app shares. One may be missing: not every kernel has
/// IPv6.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// `TCP_ESTABLISHED`.
const ESTABLISHED: &str = "01";

/// How many connections to a port of this machine are established.
///
/// # Errors
/// No table can be read.
pub(crate) fn established(port: u16) -> io::Result<usize> {
    let mut count = 0;
    let mut failed = None;
    for path in TABLES {
        match fs::read_to_string(path) {
            Ok(table) => count += count_in(&table, port),
            Err(error) => failed = Some(failed.map_or((error, 1), |(first, _)| (first, 2))),
        }
    }
    match failed {
        Some((error, failures)) if failures == TABLES.len() => Err(error),
        _ => Ok(count),
    }
}

/// Lines are `sl local_address rem_address st …`, addresses in hexadecimal (Linux, `Documentation/networking/proc_net_tcp`).
fn count_in(table: &str, port: u16) -> usize {
    let is_counted = |line: &&str| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1).and_then(|address| address.rsplit(':').next());
        let local = local.and_then(|port| u16::from_str_radix(port, 16).ok());
        local == Some(port) && fields.nth(1) == Some(ESTABLISHED)
    };
    table.lines().skip(1).filter(is_counted).count()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_established_connections_to_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue
   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000
   1: 0100007F:0BB8 0100007F:C350 01 00000000:00000000 00:00000000
   2: 0100007F:C350 0100007F:0BB8 01 00000000:00000000 00:00000000
   3: 0100007F:0BB8 0100007F:C351 06 00000000:00000000 00:00000000
   4: 00000000000000000000000001000000:0BB8 00000000000000000000000001000000:C352 01 00000000:00000000
   5: damaged";
        assert_eq!(count_in(table, 3000), 2);
        assert_eq!(count_in("", 3000), 0);
    }

    #[test]
    fn a_connection_is_counted_from_its_start_to_its_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(established(port).unwrap(), 0);
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(established(port).unwrap(), 1);
        drop((server, client));
        assert_eq!(established(port).unwrap(), 0);
    }
}
