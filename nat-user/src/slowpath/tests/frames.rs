use proptest::prelude::*;

use super::super::frames::{Frames, Shares};
use super::super::kernel::{Kernel, Step};

proptest! {
    /// Whatever the kernel and the worker do, in whatever order: no frame is lost, and none has two holders.
    #[test]
    fn no_frame_is_ever_lost(
        steps in prop::collection::vec(any::<[u8; 2]>(), 0..400),
        count in 1_u32..20,
        to_receive in 0_u32..20,
    ) {
        let mut kernel = Kernel::default();
        let mut frames = Frames::new(count, to_receive.min(count));
        for [kind, amount] in steps {
            Step::of(kind, amount).take(&mut frames, &mut kernel);
            prop_assert_eq!(kernel.check(&frames, count), Ok(()));
        }
    }
}

#[test]
fn frames_that_the_kernel_does_not_have_are_strays() {
    let mut kernel = Kernel::default();
    let mut frames = Frames::new(4, 2);
    Step::Room(4).take(&mut frames, &mut kernel);
    frames.refill(&mut kernel);
    kernel.invent(3);
    kernel.invent(99);
    frames.reclaim(&mut kernel);
    assert_eq!(frames.shares(), Shares { free: 2, receiving: 2, sending: 0, strays: 2 });
}
