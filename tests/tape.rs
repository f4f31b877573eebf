//! What a tape must refuse, or compute in the order in which it was recorded: memory that several
//! tensors share, sizes past the address space, regions of other stores.

use twoclocks::ops;
use twoclocks::{DType, Device, Recorder, Store, Tape, Var};

fn store() -> Store {
    Store::new(&Device::cpu(2).expect("a CPU"))
}

fn values(store: &Store, region: twoclocks::tape::Region) -> Vec<f32> {
    let mut values = vec![0.0; store.len(region)];
    store.read(region, 0, &mut values).expect("readable");
    values
}

/// Compiles, writes `x` and replays.
fn run(tape: &Tape, store: &mut Store, x: Var, input: &[f32]) -> twoclocks::Recording {
    let mut recording = tape.compile(store).expect("compiles");
    recording.write(x, input).expect("an input");
    recording.replay(store).expect("replays");
    recording
}

fn refused<T>(result: twoclocks::Result<T>, part: &str) {
    match result {
        Ok(_) => panic!("not refused: {part}"),
        Err(error) => assert!(error.to_string().contains(part), "{error} has no '{part}'"),
    }
}

#[test]
fn upstream_gradients_of_one_output_add_up() {
    let mut store = store();
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [3]).expect("x");
    let y = ops::mul(&mut tape, x, x).expect("y");
    let (one, two) = (tape.fill([3].into(), 1.0), tape.fill([3].into(), 2.0));
    let dx = tape.vector_jacobian(&[(y, one), (y, two)], &[x]).expect("gradient")[0];
    tape.output(dx).expect("output");
    let recording = run(&tape, &mut store, x, &[1.0, 2.0, 3.0]);
    assert_eq!(recording.read(dx).expect("dx"), [6.0, 12.0, 18.0]);
}

#[test]
fn no_gradient_flows_through_a_detached_loss() {
    let store = store();
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [3]).expect("x");
    let loss = ops::sum(&mut tape, x, &[0], false).expect("loss");
    tape.detach(loss);
    refused(tape.backward(loss, &[x]), "does not depend");
}

#[test]
fn gradients_of_intermediate_tensors_and_of_the_loss_itself() {
    let mut store = store();
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [2, 2]).expect("x");
    let square = ops::mul(&mut tape, x, x).expect("square");
    let flat = ops::reshape(&mut tape, square, [4]).expect("view");
    let scaled = ops::scale(&mut tape, flat, 3.0).expect("scaled");
    let loss = ops::sum(&mut tape, scaled, &[0], false).expect("loss");
    let all = tape.backward(loss, &[loss, flat, square, x]).expect("gradients");
    all.iter().for_each(|&gradient| tape.output(gradient).expect("output"));
    let recording = run(&tape, &mut store, x, &[1.0, 2.0, 3.0, 4.0]);
    let got: Vec<Vec<f32>> = all.iter().map(|&var| recording.read(var).expect("read")).collect();
    assert_eq!(got, [vec![1.0], vec![3.0; 4], vec![3.0; 4], vec![6.0, 12.0, 18.0, 24.0]]);
}

#[test]
fn an_output_that_is_a_view_outlives_the_nodes_after_it() {
    let mut store = store();
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [64]).expect("x");
    let y = ops::scale(&mut tape, x, 2.0).expect("y");
    let view = ops::reshape(&mut tape, y, [8, 8]).expect("view");
    let same = ops::reshape(&mut tape, x, [8, 8]).expect("a view of an input");
    tape.output(view).expect("output");
    tape.output(same).expect("output");
    let mut next = y;
    for _ in 0..20 {
        next = ops::scale(&mut tape, next, 3.0).expect("next");
    }
    tape.output(next).expect("output");
    let input: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let recording = run(&tape, &mut store, x, &input);
    let doubled: Vec<f32> = input.iter().map(|x| 2.0 * x).collect();
    assert_eq!(recording.read(view).expect("view"), doubled);
    assert_eq!(recording.read(same).expect("view"), input);
}

#[test]
fn placing_a_tensor_does_not_change_what_was_recorded_before() {
    let mut store = store();
    let region = store.upload("p", &[1.0f32, 2.0]);
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [2]).expect("x");
    let old = tape.persistent("p", region, 0, [2]).expect("p");
    let new = ops::add(&mut tape, old, x).expect("new");
    let seen = ops::scale(&mut tape, old, 10.0).expect("seen");
    tape.output(seen).expect("output");
    tape.place(new, region, 0).expect("placed");
    refused(ops::scale(&mut tape, old, 1.0), "in place");
    let now = tape.persistent("p now", region, 0, [2]).expect("p");
    let seen_now = ops::scale(&mut tape, now, 10.0).expect("seen");
    tape.output(seen_now).expect("output");
    let recording = run(&tape, &mut store, x, &[5.0, 5.0]);
    assert_eq!(recording.read(seen).expect("seen"), [10.0, 20.0]);
    assert_eq!(recording.read(seen_now).expect("seen"), [60.0, 70.0]);
    assert_eq!(values(&store, region), [6.0, 7.0]);
}

#[test]
fn of_two_tensors_in_one_place_the_first_is_not_read_any_more() {
    let mut store = store();
    let region = store.allocate("p", DType::F32, 3);
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [2]).expect("x");
    let first = ops::scale(&mut tape, x, 2.0).expect("first");
    let second = ops::scale(&mut tape, x, 3.0).expect("second");
    let first = tape.place(first, region, 0).expect("placed");
    tape.place(second, region, 1).expect("placed");
    refused(ops::scale(&mut tape, first, 1.0), "in place");
    run(&tape, &mut store, x, &[1.0, 10.0]);
    assert_eq!(values(&store, region), [2.0, 3.0, 30.0]);
}

#[test]
fn a_tensor_may_be_placed_where_it_lies_but_not_across() {
    let mut store = store();
    let region = store.upload("p", &[1.0f32, 2.0, 3.0]);
    let mut tape = Tape::new(&store);
    let p = tape.persistent("p", region, 0, [2]).expect("p");
    assert_eq!(tape.place(p, region, 0).expect("it lies there"), p);
    refused(tape.place(p, region, 1), "across");
}

#[test]
fn an_update_of_a_placed_tensor_is_not_left_out() {
    let mut store = store();
    let region = store.allocate("sum", DType::F32, 2);
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [2]).expect("x");
    let first = ops::scale(&mut tape, x, 2.0).expect("first");
    let sum = tape.place(first, region, 0).expect("placed");
    ops::accumulate(&mut tape, sum, x).expect("accumulated");
    run(&tape, &mut store, x, &[1.0, 10.0]);
    assert_eq!(values(&store, region), [3.0, 30.0]);
}

#[test]
fn memory_that_is_updated_in_place_is_not_read_by_an_older_name() {
    let mut store = store();
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [4]).expect("x");
    let y = ops::scale(&mut tape, x, 2.0).expect("y");
    let view = ops::reshape(&mut tape, y, [2, 2]).expect("view");
    let sum = ops::accumulate(&mut tape, y, x).expect("sum");
    refused(ops::scale(&mut tape, y, 1.0), "in place");
    refused(ops::scale(&mut tape, view, 1.0), "in place");
    refused(tape.output(view), "in place");
    tape.output(sum).expect("the new name");
    let recording = run(&tape, &mut store, x, &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(recording.read(sum).expect("sum"), [3.0, 6.0, 9.0, 12.0]);
}

#[test]
fn an_output_is_not_overwritten_and_an_update_does_not_read_itself() {
    let store = store();
    let mut tape = Tape::new(&store);
    let x = tape.input("x", [4]).expect("x");
    let y = ops::scale(&mut tape, x, 2.0).expect("y");
    refused(ops::accumulate(&mut tape, y, y), "shares memory");
    let half = ops::reshape(&mut tape, y, [4]).expect("view");
    refused(ops::accumulate(&mut tape, y, half), "shares memory");
    tape.output(half).expect("output");
    refused(ops::accumulate(&mut tape, y, x), "is an output");
}

/// An output takes an input's memory only where nobody else reads that: not after the node, not
/// beside it, not by a view.
#[test]
fn what_others_read_is_not_overwritten() {
    const SHAPE: [usize; 2] = [600, 40];
    let input: Vec<f32> = (0..SHAPE[0] * SHAPE[1]).map(|i| (i % 37) as f32 * 0.1).collect();
    let labels: Vec<u32> = (0..SHAPE[0] as u32).map(|row| row % 40).collect();
    // What reads the logits, and whether that leaves their memory to the gradient.
    let readers = ["nobody", "before", "beside", "after", "view", "twice", "host"];
    let mut gradients: Vec<Vec<f32>> = Vec::new();
    let mut arenas = Vec::new();
    for reader in readers {
        let mut store = store();
        let labels = store.upload("labels", &labels);
        let mut tape = Tape::new(&store);
        let labels = tape.persistent("labels", labels, 0, [SHAPE[0]]).expect("labels");
        let x = tape.input("x", SHAPE).expect("x");
        let logits = ops::scale(&mut tape, x, 2.0).expect("logits");
        let doubled = |tape: &mut Tape, of: Var| ops::scale(tape, of, 2.0).expect("a reader");
        let mut read = match reader {
            "beside" => Some(doubled(&mut tape, logits)),
            "before" => {
                let read = doubled(&mut tape, logits);
                let sum = ops::sum(&mut tape, read, &[0, 1], false).expect("sum");
                let none = ops::scale(&mut tape, sum, 0.0).expect("zero");
                tape.output(none).expect("output");
                Some(read)
            }
            "host" => Some(logits),
            _ => None,
        };
        let shown = match reader {
            "view" => ops::reshape(&mut tape, logits, SHAPE).expect("view"),
            _ => logits,
        };
        let gradient = match reader {
            "twice" => {
                ops::softmax_cross_entropy_soft(&mut tape, logits, logits).expect("soft").dlogits
            }
            _ => ops::softmax_cross_entropy(&mut tape, shown, labels, 0.0).expect("ce").dlogits,
        };
        if let "after" | "view" = reader {
            read = Some(doubled(&mut tape, logits));
        }
        tape.output(gradient).expect("output");
        if let Some(read) = read {
            tape.output(read).expect("output");
        }
        let recording = run(&tape, &mut store, x, &input);
        if let Some(read) = read {
            let factor = if reader == "host" { 2.0 } else { 4.0 };
            let want: Vec<f32> = input.iter().map(|x| factor * x).collect();
            assert_eq!(recording.read(read).expect("read"), want, "{reader}");
        }
        gradients.push(recording.read(gradient).expect("gradient"));
        arenas.push(recording.memory().arena_bytes);
    }
    for (reader, gradient) in
        readers.iter().zip(&gradients).filter(|(reader, _)| **reader != "twice")
    {
        assert_eq!(*gradient, gradients[0], "{reader}");
    }
    // Of logits that are alone, one matrix beside the input; else one more.
    let matrix = input.len() * 4;
    for (reader, arena) in readers.iter().zip(arenas) {
        let matrices = if *reader == "nobody" { 2 } else { 3 };
        assert!(arena / matrix >= matrices, "{reader}: {arena} bytes");
        assert!(*reader != "nobody" || arena / matrix == 2, "{arena} bytes");
    }
}

#[test]
fn sizes_past_the_address_space_are_refused() {
    let mut store = store();
    let region = store.allocate("p", DType::F32, 4);
    let mut tape = Tape::new(&store);
    refused(tape.input("x", [1 << 31, 1 << 31]), "address space");
    refused(tape.input("x", [1 << 33, 1 << 31]), "address space");
    refused(tape.persistent("p", region, 1 << 62, [4]), "does not fit");
    refused(tape.persistent("p", region, 0, [1 << 62]), "does not fit");
    let x = tape.input("x", [4]).expect("x");
    let y = ops::scale(&mut tape, x, 2.0).expect("y");
    refused(tape.place(y, region, 1 << 62), "does not fit");
    let mut values = [0f32; 4];
    refused(store.read(region, usize::MAX, &mut values), "asked for");
    let empty = tape.input("empty", [1 << 40, 0, 1 << 40]).expect("no elements");
    tape.output(empty).expect("output");
    assert!(tape.compile(&store).is_ok());
}

#[test]
fn a_region_of_another_store_is_refused() {
    let (mut one, mut other) = (store(), store());
    let region = one.allocate("p", DType::F32, 4);
    other.allocate("q", DType::F32, 4);
    let mut tape = Tape::new(&other);
    refused(tape.persistent("p", region, 0, [4]), "another store");
    let x = tape.input("x", [4]).expect("x");
    let y = ops::scale(&mut tape, x, 2.0).expect("y");
    refused(tape.place(y, region, 0), "another store");
    refused(other.write(region, 0, &[1f32]), "another store");
    refused(other.read(region, 0, &mut [0f32]), "another store");
}
