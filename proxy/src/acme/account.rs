//! The account at a CA: registered once, with a key that is on disk before the CA knows it.

use instant_acme::{Account, Error, Key};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use uh_system::plain;

use super::failure::Failure;
use super::http::CaClient;
use super::patience::patient;
use super::store::{AccountFile, Store};
use crate::config;
use crate::fault;

/// The account at the configured CA. It is registered if the CA doesn't know it yet, and has the configured contact.
///
/// # Errors
/// If the CA refuses, or the account can't be saved.
pub(super) async fn open(
    store: &Store,
    settings: &config::Acme,
    client: &CaClient,
) -> Result<Account, Failure> {
    let failed = |step: &str, error: &Error| Failure::of(step, error, &client.heard);
    let mut file = match store.account(&settings.directory) {
        Some(file) => file,
        None => new_file(store, &settings.directory)?,
    };
    let account = match &file.id {
        Some(id) => {
            let reopen = async || {
                let builder = Account::builder_with_http(Box::new(client.clone()));
                builder.from_parts(id.clone(), key_of(&file)?, settings.directory.clone()).await
            };
            patient(reopen).await.map_err(|error| failed("connect to the CA", &error))?
        }
        None => {
            let register = async || {
                let builder = Account::builder_with_http(Box::new(client.clone()));
                let (key, der) = (Key::from_pkcs8_der(key_of(&file)?)?, PrivateKeyDer::Pkcs8(key_of(&file)?));
                builder.create_from_key((key, der), settings.directory.clone()).await
            };
            let (account, _) =
                patient(register).await.map_err(|error| failed("register an account at the CA", &error))?;
            fault::point("acme_registered");
            file.id = Some(account.id().to_owned());
            save(store, &file)?;
            fault::point("acme_account_saved");
            tracing::info!(
                directory = settings.directory,
                account = account.id(),
                "registered an account at the certificate authority"
            );
            account
        }
    };
    if file.contact != settings.contact {
        let contact: Vec<&str> = settings.contact.iter().map(String::as_str).collect();
        let update = async || account.update_contacts(&contact).await;
        patient(update).await.map_err(|error| failed("set the account's contact", &error))?;
        file.contact.clone_from(&settings.contact);
        save(store, &file)?;
    }
    Ok(account)
}

/// Forgets the number that the CA doesn't know any more. The key stays.
///
/// # Errors
/// If the account can't be saved.
pub(super) fn forget(store: &Store, directory: &str) -> Result<(), Failure> {
    match store.account(directory) {
        Some(file) => save(store, &AccountFile { id: None, contact: Vec::new(), ..file }),
        None => Ok(()),
    }
}

/// An account that isn't registered yet. A crash after the registration then finds the same account again.
fn new_file(store: &Store, directory: &str) -> Result<AccountFile, Failure> {
    let key = KeyPair::generate()
        .map_err(|error| Failure::local(format!("cannot make the account's key: {error}")))?;
    let (directory, key) = (directory.to_owned(), key.serialize_pem());
    let file = AccountFile { directory, id: None, contact: Vec::new(), key };
    save(store, &file)?;
    fault::point("acme_account_key_saved");
    Ok(file)
}

fn save(store: &Store, file: &AccountFile) -> Result<(), Failure> {
    store.save_account(file).map_err(|error| Failure::local(plain(&error).to_string()))
}

fn key_of(file: &AccountFile) -> Result<PrivatePkcs8KeyDer<'static>, Error> {
    PrivatePkcs8KeyDer::from_pem_slice(file.key.as_bytes()).map_err(|_| Error::KeyRejected)
}
