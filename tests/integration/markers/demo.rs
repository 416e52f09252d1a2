//! The demo prints no personal data either. It is run with few orders, and its output and its fleet's logs are searched for the
//! data of its population. Markers are not needed: the demo's database is removed, and all its data has an unmistakable format.

use std::{path::Path, process::Stdio, time::Duration};

use regex::Regex;
use tests::fleet;

/// The demo's days, one second each, doubled for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Names, telephone numbers, addresses, and the contents of messages and carts: see `population.rs` of the demo.
const PERSONAL: &[&str] = &[
    "(Nguyễn|Trần|Lê|Phạm|Hoàng|Huỳnh|Phan|Vũ|Võ|Đặng|Bùi|Đỗ) (Thị|Văn|Hữu|Ngọc|Minh|Thanh|Quốc|Thùy) ",
    r"\b09\d{8}\b",
    r"khach\d+@example\.vn",
    "Hà Nội|Đà Nẵng|TP. Hồ Chí Minh|Hải Phòng|Cần Thơ|Huế",
    "Áo khoác nữ|Tai nghe|Giày thể thao|Ốp lưng|Nồi chiên",
    r"\bsp-\d+",
    "Bao giờ hàng về",
    "Cho hỏi lại",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_names_no_person() {
    // The demo writes its report and its logs below its working directory.
    let folder = std::env::temp_dir().join(format!("kyhan-demo-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let servers = ["KYHAN_DATABASE_URL", "KYHAN_AMQP_URL"].map(|name| (name.to_owned(), std::env::var(name).expect(name)));
    let mut demo = fleet::command("demo", &servers.into(), ["--orders", "100"]).expect("built");
    demo.current_dir(&folder).env("RUST_BACKTRACE", "full").stdin(Stdio::null());
    let said = tokio::time::timeout(PATIENCE, demo.output()).await.expect("it ends").expect("run");
    let (out, err) = (String::from_utf8_lossy(&said.stdout).into_owned(), String::from_utf8_lossy(&said.stderr).into_owned());
    let mut outputs = vec![("stdout".to_owned(), out), ("stderr".to_owned(), err)];
    let files = std::fs::read_dir(folder.join("target/demo")).expect("the demo's folder");
    for file in files.map(|file| file.expect("a file").path()) {
        outputs.push((name(&file), String::from_utf8_lossy(&std::fs::read(&file).expect("a file")).into_owned()));
    }
    std::fs::remove_dir_all(&folder).expect("removed");

    for pattern in PERSONAL {
        let pattern = Regex::new(pattern).expect("a regular expression");
        for (place, text) in &outputs {
            let found = pattern.find(text).map(|found| (found.start(), found.as_str()));
            assert_eq!(found, None, "{place} contains data of the population ({pattern})");
        }
    }
    // The demo did produce all of these outputs.
    assert!(said.status.success(), "{:?}", outputs[0]);
    for (place, text) in [("stdout", "Trong giỏ"), ("worker-1.log", "worker started"), ("relay.log", "relay started")] {
        assert!(outputs.iter().any(|(of, said)| of == place && said.contains(text)), "no {text:?} in {place}: {outputs:?}");
    }
}

fn name(file: &Path) -> String {
    file.file_name().expect("a name").to_string_lossy().into_owned()
}
