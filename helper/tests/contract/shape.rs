//! The shape of the contract: the XML file is what the helper exports, and the bus policy lets
//! everybody ask and nobody else be the helper.

use std::{os::unix::process::CommandExt, process::Command};

use crate::{lab::Lab, netns::skipped};

/// `Open(in request a{sv}, out lease t ...)` and the like, in order; comments and layout aside.
fn members(xml: &str) -> Vec<String> {
    let mut text = xml.to_owned();
    while let Some(start) = text.find("<!--") {
        let end = text[start..].find("-->").unwrap() + start + 3;
        text.replace_range(start..end, "");
    }
    let (_, interface) = text.split_once("<interface name=\"org.portcullis.Netboot1\">").unwrap();
    let (interface, _) = interface.split_once("</interface>").unwrap();
    let attribute = |tag: &str, name: &str| {
        let (_, rest) = tag.split_once(&format!("{name}=\""))?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    let mut members: Vec<String> = Vec::new();
    for tag in interface.split('<').skip(1) {
        let kind = tag.split([' ', '>', '/']).next().unwrap();
        let name = attribute(tag, "name").unwrap_or_default();
        match kind {
            "method" | "signal" | "property" | "annotation" => {
                members.push(format!("{kind} {name}"))
            }
            "arg" => {
                let direction = attribute(tag, "direction").unwrap_or_default();
                let kind = attribute(tag, "type").unwrap();
                members.last_mut().unwrap().push_str(&format!(", {direction} {name} {kind}"));
            }
            _ => {}
        }
    }
    members.sort();
    members
}

#[tokio::test]
async fn the_xml_file_is_what_the_helper_exports() {
    let lab = Lab::start().await;
    let client = lab.client().await;
    let reply = client.connection.call_method(
        Some("org.portcullis.Netboot1"),
        "/org/portcullis/Netboot1",
        Some("org.freedesktop.DBus.Introspectable"),
        "Introspect",
        &(),
    );
    let exported: String = reply.await.unwrap().body().deserialize().unwrap();
    let written = members(include_str!("../../../dbus/org.portcullis.Netboot1.xml"));
    assert_eq!(members(&exported), written);
    assert_eq!(written.len(), 6, "{written:?}");
}

/// Runs busctl as the user nobody.
fn as_nobody(address: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new("busctl")
        .arg(format!("--address={address}"))
        .args(arguments)
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), text)
}

#[tokio::test]
async fn p9_everybody_may_ask_and_nobody_else_may_be_the_helper() {
    if !nix::unistd::geteuid().is_root() {
        skipped("needs root, to become another user");
        return;
    }
    let mut lab = Lab::start().await;
    let address = lab.bus.address.clone();
    let name = "org.portcullis.Netboot1";
    let path = "/org/portcullis/Netboot1";
    let ask = move |arguments: Vec<&'static str>| {
        let address = address.clone();
        tokio::task::spawn_blocking(move || as_nobody(&address, &arguments))
    };
    let (ok, text) = ask(vec!["call", name, path, name, "List"]).await.unwrap();
    assert!(ok, "{text}");
    let open = vec!["call", name, path, name, "Open", "a{sv}", "1", "interface", "s", "eth0"];
    let (ok, text) = ask(open).await.unwrap();
    assert!(ok, "{text}");
    // Another interface of the same object is not for everybody.
    let manager = "org.freedesktop.DBus.ObjectManager";
    let (ok, text) = ask(vec!["call", name, path, manager, "GetManagedObjects"]).await.unwrap();
    assert!(!ok && text.to_lowercase().contains("denied"), "{text}");
    // With the helper gone, the name is free and still nobody's.
    lab.helper.stop();
    (&mut lab.helper.task).await.unwrap().unwrap();
    let bus = ["call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"];
    let (ok, text) = ask([&bus[..], &["GetId"]].concat()).await.unwrap();
    assert!(ok, "{text}");
    let own = [&bus[..], &["RequestName", "su", name, "4"]].concat();
    let (ok, text) = ask(own).await.unwrap();
    assert!(!ok && text.to_lowercase().contains("denied"), "{text}");
}
