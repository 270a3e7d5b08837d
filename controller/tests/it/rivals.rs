//! Two deploys at once, on one machine and on two.

use std::process::Stdio;

use crate::harness::{Ran, Stage, free_port, until};

#[test]
fn of_two_deploys_at_once_one_wins_and_the_other_reports_who_holds_the_lock() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    stage.configure("uh-deploy.toml", "[runtime.process]\nenv = { START_DELAY_MS = \"500\" }");
    let start = |version| {
        let mut command = stage.command(&["blue-green", "--version", version]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children = [start("1.0.1"), start("1.0.2")];
    let ran = children.map(|child| Ran::of(child.wait_with_output().unwrap()));
    let mut codes = [ran[0].code, ran[1].code];
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(4)], "{}\n{}", ran[0].text, ran[1].text);
    let (loser, winner) = if ran[0].code == Some(4) { (0, "1.0.2") } else { (1, "1.0.1") };
    ran[loser].says("another uh-deploy is running").says(&format!("deploy of {winner}")).says("(pid ");
    assert_eq!(stage.served(), format!("green {winner}"));
}

#[test]
fn a_slow_old_deploy_never_overrides_a_newer_one() {
    let stage = Stage::new();
    stage.deploy("1.0.0");
    // The slow one simulates another machine: it has its own state directory and ports.
    let slow_ports = [stage.ports[0], free_port()];
    let slow = "[runtime.process]\nenv = { START_DELAY_MS = \"1500\" }";
    stage.configure_with("slow.toml", slow, "slow-state", slow_ports);
    let mut command = stage.command_with("slow.toml", &["blue-green", "--version", "1.0.1-slow"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let instances = stage.path("slow-state/instances");
    until("the slow one has begun", || instances.read_dir().ok()?.next()?.ok());
    let load = stage.load();
    stage.deploy("1.0.2");
    let slow = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(slow.code, Some(5), "{}", slow.text);
    slow.says("Superseded").says("green (v1.0.2) serves");
    assert_eq!(stage.served(), "green 1.0.2");
    let slow_port = std::net::SocketAddr::from(([127, 0, 0, 1], slow_ports[1]));
    assert!(std::net::TcpStream::connect(slow_port).is_err(), "the slow one's candidate is gone");
    load.must_be_unharmed();
}

/// uh-proxy's generation counts the changes of all its services.
#[test]
fn deploys_of_two_services_do_not_supersede_each_other() {
    let mut stage = Stage::new();
    let shop_ports = [free_port(), free_port()];
    let shop = format!(
        "[services.shop]\npath_prefix = \"/shop\"\nactive = \"green\"\n\
         [services.shop.backends.blue]\nendpoints = [\"127.0.0.1:{}\"]\n\
         [services.shop.backends.green]\nendpoints = [\"127.0.0.1:{}\"]\n\
         [services.shop.health]\ninterval = \"50ms\"\nhealthy_after = 1\n",
        shop_ports[0], shop_ports[1]
    );
    let front_door = stage.path("uh-proxy.toml");
    let both = std::fs::read_to_string(&front_door).unwrap() + &shop;
    std::fs::write(&front_door, both).unwrap();
    stage.kill_front_door();
    stage.start_front_door();
    stage.configure_with("shop.toml", "[deploy]\nservice = \"shop\"", "shop-state", shop_ports);
    let start = |file: &str, args: &[&str]| {
        let mut command = stage.command_with(file, args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let well = |child: std::process::Child| {
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(0), "{}", ran.text);
    };
    // One whole deploy happens during the other's health gate.
    let slow = "[deploy]\nservice = \"app\"\n[runtime.process]\nenv = { START_DELAY_MS = \"1500\" }";
    stage.configure("uh-deploy.toml", slow);
    let app = start("uh-deploy.toml", &["blue-green", "--version", "1.0.0"]);
    until("the slow one has begun", || stage.path("deploy-state/instances").read_dir().ok()?.next()?.ok());
    well(start("shop.toml", &["blue-green", "--version", "7.0.0"]));
    well(app);
    // Both at the same time.
    stage.configure("uh-deploy.toml", "[deploy]\nservice = \"app\"");
    for args in [&["blue-green", "--version", "7.0.1"][..], &["rollback"]] {
        let children = ["uh-deploy.toml", "shop.toml"].map(|file| start(file, args));
        children.into_iter().for_each(well);
    }
    let active: Vec<String> =
        stage.status().services.iter().map(|service| service.active.to_string()).collect();
    assert_eq!(active, ["blue", "blue"]);
}
