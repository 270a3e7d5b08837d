//! HTTPS: real certificates, real handshakes, real clients (openssl, curl, rustls).

mod certificates;
mod clients;
mod exchanges;
mod handshakes;
mod redirects;
mod reloading;
