use super::*;

fn labels(ticks: Vec<(f64, String)>) -> Vec<String> {
    ticks.into_iter().map(|(_, label)| label).collect()
}

#[test]
fn ticks_are_round() {
    assert_eq!(labels(linear_ticks(0.0, 9.8, false)), ["0", "2", "4", "6", "8"]);
    assert_eq!(
        labels(linear_ticks(0.0, 0.003, false)),
        ["0.0000", "0.0005", "0.0010", "0.0015", "0.0020", "0.0025", "0.0030"]
    );
    assert_eq!(labels(linear_ticks(0.0, 21_000.0, false)), ["0", "5000", "10k", "15k", "20k"]);
    assert_eq!(labels(Scale::Log.ticks(0.04, 2.6)), ["0.05", "0.1", "0.2", "0.5", "1", "2"]);
    assert_eq!(labels(Scale::Log.ticks(3e-5, 40.0)), ["1e-4", "0.001", "0.01", "0.1", "1", "10"]);
    assert_eq!(
        labels(Scale::Log.ticks(2.05, 2.35)),
        ["2.05", "2.10", "2.15", "2.20", "2.25", "2.30", "2.35"]
    );
    let ticks = labels(Scale::Share.ticks(0.7, 0.985));
    assert_eq!(ticks, ["98 %", "95 %", "90 %", "80 %"]);
    assert_eq!(labels(linear_ticks(1.0, 1.0, false)), [""; 0]);
    assert_eq!(labels(linear_ticks(0.0, f64::INFINITY, false)), [""; 0]);
}

#[test]
fn ticks_are_few_and_inside_whatever_the_range() {
    for scale in [Scale::Linear, Scale::FromZero, Scale::Log, Scale::Share] {
        for low in [1e-9, 1e-3, 0.1, 0.5, 0.97] {
            for span in [1e-3, 0.02, 0.4, 30.0, 1e9] {
                let high = if scale == Scale::Share { 1.0 - 1e-6 } else { low + span };
                let ticks = scale.ticks(low, high);
                assert!((2..=9).contains(&ticks.len()), "{scale:?} {low} {high}: {ticks:?}");
                let slack = 1e-6 * (high - low);
                for (value, _) in &ticks {
                    assert!(*value >= low - slack && *value <= high + slack, "{ticks:?}");
                }
            }
        }
    }
}

#[test]
fn numbers_are_short() {
    for (value, expected) in [
        (0.0, "0"),
        (0.98333, "0.9833"),
        (12.3456, "12.35"),
        (123.0, "123"),
        (54_321.0, "54.3k"),
        (1.25e6, "1.25M"),
        (3e-4, "3e-4"),
        (1.234e-7, "1.23e-7"),
        (-2.5, "-2.5"),
        (f64::NAN, "not a number"),
    ] {
        assert_eq!(short(value), expected);
    }
}

#[test]
fn lines_break_where_numbers_end() {
    let points = [(0.0, 1.0), (1.0, 2.0), (2.0, f64::NAN), (3.0, 4.0)];
    assert_eq!(path(&points), "M0.0 1.0L1.0 2.0M3.0 4.0");
}

#[test]
fn thinning_keeps_spikes_and_gaps() {
    let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
    points[777].1 = 50.0;
    points[5000].1 = f64::NAN;
    let kept = thin(&points, 400);
    assert!(kept.len() <= 400, "{}", kept.len());
    assert!(kept.contains(&(777.0, 50.0)));
    assert!(kept.iter().any(|p| p.0 == 5000.0 && p.1.is_nan()));
    assert!(kept.is_sorted_by(|a, b| a.0 <= b.0));
}

#[test]
fn odd_data_makes_no_odd_numbers() {
    let nan = f64::NAN;
    let data: [&[(f64, f64)]; 7] = [
        &[],
        &[(1.0, nan)],
        &[(0.0, 0.0)],
        &[(0.0, 1.0)],
        &[(1.0, 0.3), (2.0, nan), (3.0, f64::INFINITY), (4.0, -1.0)],
        &[(1.0, 1e-300), (2.0, 1e300)],
        &[(5.0, 0.5)],
    ];
    for points in data {
        for scale in [Scale::Linear, Scale::FromZero, Scale::Log, Scale::Share] {
            let line = Line {
                name: "a".into(),
                title: "b".into(),
                class: "s0",
                marks: true,
                points: points.to_vec(),
            };
            let svg = Chart {
                title: "t".into(),
                y_label: "y".into(),
                x_label: "x".into(),
                scale,
                lines: vec![line],
            }
            .render();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{scale:?} {points:?} {svg}");
        }
    }
    for bars in [vec![], vec![(1, vec![0.0, nan])], vec![(3, vec![1.0, nan])]] {
        let svg = Bars {
            title: "t".into(),
            y_label: "y".into(),
            x_label: "epoch".into(),
            parts: vec![("a", "s0"), ("b", "s1")],
            bars,
        }
        .render();
        assert!(!svg.contains("NaN"), "{svg}");
    }
}

#[test]
fn text_stays_text() {
    assert_eq!(
        escape("<a b=\"c\" d='e'>&\u{1}\n"),
        "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;\u{fffd}\n"
    );
}
