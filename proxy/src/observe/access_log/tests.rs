//! What a full disk and an earlier process do to lines of the access log.

use super::*;

/// A disk with little space.
struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut disk = self.0.lock();
        let some = bytes.len().min(disk.1 - disk.0.len());
        if some == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.0.extend_from_slice(&bytes[..some]);
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn half_a_line_that_a_full_disk_leaves_spoils_no_other_one() {
    let disk = Arc::new(Mutex::new((Vec::new(), 12)));
    let mut sink = Sink::to(Disk(Arc::clone(&disk)));
    let batch = |text: &str| Batch { bytes: text.into(), lines: text.matches('\n').count() as u64 };
    assert_eq!(write_batch(&mut sink, &batch("one\ntwo\n")).0, 0);
    let (lost, error) = write_batch(&mut sink, &batch("three\nfour\n"));
    assert_eq!((lost, error.unwrap().kind()), (2, io::ErrorKind::StorageFull));
    assert_eq!(write_batch(&mut sink, &batch("five\n")).0, 1);
    disk.lock().1 = 1000;
    assert_eq!(write_batch(&mut sink, &batch("six\n")).0, 0);
    assert_eq!(disk.lock().0, b"one\ntwo\nthre\nsix\n");
}

#[test]
fn half_a_line_in_a_file_that_is_opened_is_ended_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    for (before, after) in [("one\ntw", "one\ntw\nnew\n"), ("one\n", "one\nnew\n"), ("", "new\n")] {
        std::fs::write(&path, before).unwrap();
        let config = AccessLog { path: Some(path.clone()), format: AccessLogFormat::Json };
        let mut sink = open(&config).unwrap();
        sink.look();
        let batch = Batch { bytes: b"new\n".to_vec(), lines: 1 };
        assert!(matches!(write_batch(&mut sink, &batch), (0, None)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), after);
    }
}
