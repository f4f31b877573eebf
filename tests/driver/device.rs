//! The crate's own device, found, opened and used on the stand-in.

use crate::on_stand_in;
use twoclocks::device::cuda;

on_stand_in! {
    fn the_stand_in_is_found_and_named_as_such() {
        let driver = cuda::probe().expect("the stand-in is on the loader's path");
        assert!(driver.stand_in, "{driver:?}");
        assert_eq!(driver.version, "12.0");
        let [info] = &driver.devices[..] else { panic!("{driver:?}") };
        assert_eq!((info.ordinal, info.capability), (0, (8, 0)));
        assert!(info.name.contains("no GPU") && info.memory_bytes > 1 << 20, "{info}");
        assert_eq!(cuda::find("cuda").expect("the first one").1, *info);
        assert_eq!(cuda::find("cuda:0").expect("the only one").1, *info);
        let error = cuda::find("cuda:1").expect_err("there is one").to_string();
        assert!(error.contains("cuda:1") && error.contains("only one"), "{error}");
    }
}

/// `twoclocks doctor` says that a stand-in is none, for people and for programs.
#[cfg(feature = "cli")]
#[test]
fn doctor_names_the_stand_in() {
    let Some(folder) = crate::build::library() else { return };
    let doctor = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_twoclocks"));
        let command = command.arg("doctor").args(flags).env("LD_LIBRARY_PATH", folder);
        let output = command.output().expect("the command starts");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let text = doctor(&[]);
    assert!(text.contains("NOT A GPU") && text.contains("cuda:0"), "{text}");
    let line: serde_json::Value =
        serde_json::from_str(&doctor(&["--json"])).expect("a line of JSON");
    assert_eq!(line["cuda"]["stand_in"], true, "{line}");
    assert_eq!(line["cuda"]["devices"][0]["device"], "cuda:0", "{line}");
}
