//! HTTPS with real certificates, handshakes and clients (openssl, curl, rustls).

mod certificates;
mod clients;
mod exchanges;
mod handshakes;
mod redirects;
mod reloading;
