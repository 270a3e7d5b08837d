//! uh-deploy on the host, with the compose tool, as an operator runs it to replace the front door.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use uh_testkit::process::{Finished, program, run};

use super::{COMMAND_WITHIN, Stack, succeeded};

impl Stack {
    /// Runs `uh-deploy …` on the host, whether it succeeds or not.
    ///
    /// # Errors
    /// If it can't be run.
    pub async fn host_deploy(&self, arguments: &[&str]) -> Result<Finished> {
        let text = std::fs::read_to_string(self.dir().join("uh-deploy.toml"))?;
        let own = format!(
            "[deploy]\nadmin_socket = {:?}\nstate_dir = {:?}\n",
            self.volume("admin").await?.join("admin.sock"),
            self.dir().join("deploys"),
        );
        let config = self.dir().join("on-host.toml");
        std::fs::write(&config, text.replacen("[deploy]\n", &own, 1))?;
        let mut command = Command::new(program("uh-deploy")?);
        command.arg("--config").arg(config).args(arguments);
        run(command, COMMAND_WITHIN).await
    }

    /// Where a volume of the project is on this host.
    ///
    /// # Errors
    /// If there is no such volume.
    pub async fn volume(&self, name: &str) -> Result<PathBuf> {
        let volume = format!("{}_{name}", self.project);
        let mut command = Command::new("docker");
        command.args(["volume", "inspect", "--format={{.Mountpoint}}", &volume]);
        Ok(succeeded(&["volume"], run(command, COMMAND_WITHIN).await?)?.trim().into())
    }

    /// The published port at the host's address on the project's network: packets to it are sent on by the kernel, while those
    /// to the loopback address pass a process of the engine.
    ///
    /// # Errors
    /// If there is no such network.
    pub async fn forwarded(&self) -> Result<SocketAddr> {
        let mut command = Command::new("docker");
        command.args(["network", "inspect", "--format={{(index .IPAM.Config 0).Gateway}}", &self.project]);
        let gateway = succeeded(&["network"], run(command, COMMAND_WITHIN).await?)?;
        let gateway = gateway.trim().parse().with_context(|| format!("not an address: {gateway}"))?;
        Ok(SocketAddr::new(gateway, self.address.port()))
    }

    /// The ids of the running containers of a compose service.
    ///
    /// # Errors
    /// If the engine doesn't answer.
    pub async fn running(&self, service: &str) -> Result<Vec<String>> {
        let ids = self.compose(&["ps", "-q", service]).await?;
        Ok(ids.lines().map(str::to_owned).collect())
    }
}
