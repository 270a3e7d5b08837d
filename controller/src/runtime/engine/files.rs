//! Copies a directory out of an image: by a container that is created for it and never started.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Component, Path};
use std::time::Duration;

use bollard::Docker;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, DownloadFromContainerOptionsBuilder, RemoveContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tar::EntryType;
use tokio::sync::mpsc;
use uh_protocol::BackendName;

use super::{BoxError, CALL, Engine, STATE_DIR};
use crate::fault;
use crate::runtime::RuntimeError;

/// Parts of the archive that may wait to be written.
const MOST_WAITING: usize = 16;

impl Engine {
    /// Copies the directory `from` of an image to `to`, which doesn't exist yet, within this time.
    pub(in crate::runtime) async fn copy_files(
        &self,
        backend: &BackendName,
        image: &str,
        from: &str,
        to: &Path,
        within: Duration,
    ) -> Result<(), RuntimeError> {
        let failed =
            |source: BoxError| RuntimeError::Files { to: to.to_owned(), source: io::Error::other(source) };
        let name = self.copy_name(backend)?;
        self.drop_container(&name).await.map_err(failed)?;
        let copied = tokio::time::timeout(within, self.copy_from(&name, image, from, to)).await;
        let dropped = self.drop_container(&name).await;
        copied
            .map_err(|_| failed(format!("not finished within {}", crate::time::span(within)).into()))?
            .map_err(failed)?;
        dropped.map_err(failed)
    }

    /// Removes the container of a copy that was interrupted.
    pub(in crate::runtime) async fn end_copy(&self, backend: &BackendName) -> Result<(), RuntimeError> {
        let name = self.copy_name(backend)?;
        let failed = |source| RuntimeError::Unreachable { what: "the engine".to_owned(), source };
        self.drop_container(&name).await.map_err(failed)
    }

    /// Always the same, so that what a killed uh-deploy has left is found.
    fn copy_name(&self, backend: &BackendName) -> Result<String, RuntimeError> {
        Ok(format!("uh-deploy-files.{}.{backend}", self.owner.id_or_new()?))
    }

    async fn copy_from(&self, name: &str, image: &str, from: &str, to: &Path) -> Result<(), BoxError> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        let labels = HashMap::from([(STATE_DIR.to_owned(), self.owner.directory())]);
        // It needs a command to be created.
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            cmd: Some(vec!["true".to_owned()]),
            labels: Some(labels),
            ..ContainerCreateBody::default()
        };
        self.ask("create a container", CALL, async |client: Docker| {
            client.create_container(Some(options), body).await
        })
        .await?;
        fault::point("files.created");
        let client = self.ask("accept a connection", CALL, async |client: Docker| Ok(client)).await?;
        let options = DownloadFromContainerOptionsBuilder::new().path(from).build();
        let mut archive = std::pin::pin!(client.download_from_container(name, Some(options)));
        let (parts, received) = mpsc::channel(MOST_WAITING);
        let (source, target) = (from.to_owned(), to.to_owned());
        let unpacking =
            tokio::task::spawn_blocking(move || unpack(ArchiveReader::new(received), &source, &target));
        while let Some(part) = archive.next().await {
            let part = part.map_err(|error| format!("{from}: {}", crate::chain(&error)))?;
            if !part.is_empty() && parts.send(part).await.is_err() {
                break;
            }
        }
        // An empty part is the end: a channel that just closes isn't.
        let _ = parts.send(Bytes::new()).await;
        Ok(unpacking.await??)
    }

    async fn drop_container(&self, name: &str) -> Result<(), BoxError> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let dropped = self
            .call("remove a container", CALL, async |client: Docker| {
                client.remove_container(name, Some(options.clone())).await
            })
            .await;
        match dropped {
            Err(error) if error.status() == Some(404) => Ok(()),
            other => Ok(other?),
        }
    }
}

/// Unpacks an archive of the directory `from` to `to`.
fn unpack(archive: impl Read, from: &str, to: &Path) -> io::Result<()> {
    let base =
        Path::new(from).file_name().ok_or_else(|| io::Error::other(format!("{from} isn't a directory")))?;
    let parent = to.parent().unwrap_or(Path::new("/"));
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_mtime(false);
    archive.set_preserve_permissions(false);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let kind = entry.header().entry_type();
        let fits =
            matches!(kind, EntryType::Regular | EntryType::Directory | EntryType::Symlink | EntryType::Link);
        let stays = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        // It refuses what would be written elsewhere, through a link for example.
        if !fits || !stays || !entry.unpack_in(parent)? {
            return Err(io::Error::other(format!(
                "{} in the image is neither a file, nor a directory, nor a link within it",
                path.display()
            )));
        }
    }
    let unpacked = parent.join(base);
    if !std::fs::symlink_metadata(&unpacked)?.is_dir() {
        return Err(io::Error::other(format!("{from} in the image isn't a directory")));
    }
    if unpacked == to { Ok(()) } else { std::fs::rename(unpacked, to) }
}

/// Reads what another task sends.
struct ArchiveReader {
    parts: mpsc::Receiver<Bytes>,
    current: Bytes,
    ended: bool,
}

impl ArchiveReader {
    fn new(parts: mpsc::Receiver<Bytes>) -> Self {
        Self { parts, current: Bytes::new(), ended: false }
    }
}

impl Read for ArchiveReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.ended {
            self.current = self.parts.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)?;
            self.ended = self.current.is_empty();
        }
        let read = self.current.len().min(buffer.len());
        buffer[..read].copy_from_slice(&self.current.split_to(read));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o600);
            match kind {
                EntryType::Symlink | EntryType::Link => {
                    header.set_size(0);
                    builder.append_link(&mut header, path, content).unwrap();
                }
                _ => {
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_bytes()).unwrap();
                }
            }
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(entries: &[(&str, EntryType, &str)]) -> (tempfile::TempDir, io::Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let result = unpack(&archive(entries)[..], "/app/public", &dir.path().join("files"));
        (dir, result)
    }

    #[test]
    fn a_directory_of_an_image_is_unpacked_under_another_name() {
        let (dir, result) = unpacked(&[
            ("public/", EntryType::Directory, ""),
            ("public/a.txt", EntryType::Regular, "a"),
            ("public/link", EntryType::Symlink, "a.txt"),
        ]);
        result.unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("files/link")).unwrap(), "a");
    }

    #[test]
    fn an_archive_that_leaves_its_directory_or_is_cut_off_is_refused() {
        let (_dir, file) = unpacked(&[("public", EntryType::Regular, "x")]);
        assert!(file.unwrap_err().to_string().contains("isn't a directory"));
        let (dir, through) = unpacked(&[
            ("public/", EntryType::Directory, ""),
            ("public/up", EntryType::Symlink, "/tmp"),
            ("public/up/evil", EntryType::Regular, "x"),
        ]);
        assert!(through.is_err() && !Path::new("/tmp/evil").exists());
        assert!(!dir.path().join("files").exists());
        let (_dir, device) =
            unpacked(&[("public/", EntryType::Directory, ""), ("public/tty", EntryType::Char, "")]);
        assert!(device.unwrap_err().to_string().contains("tty"));
        let (sender, receiver) = mpsc::channel(1);
        drop(sender);
        assert!(ArchiveReader::new(receiver).read(&mut [0]).is_err());
    }
}
