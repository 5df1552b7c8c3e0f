//! The stages of a text with tags.

use super::error::GrammarError;
use super::form::{PARTS_MAX, Tag, Tags};
use super::lark::Lark;
use super::plan::{Compiler, Stage};

/// What a text is watched for: each token is held against all of it.
const TRIGGERS_MAX: usize = 16;
const TRIGGER_BYTES_MAX: usize = 128;

impl Compiler<'_> {
    /// Text with tags in it.
    pub fn tagged(&self, tags: &Tags) -> Result<Vec<Stage>, GrammarError> {
        let refused = |reason: String| Err(GrammarError::Form(reason));
        if tags.triggers.is_empty() || tags.triggers.len() > TRIGGERS_MAX {
            return refused(format!("there must be 1 to {TRIGGERS_MAX} triggers"));
        }
        if tags.triggers.iter().any(|text| text.is_empty() || text.len() > TRIGGER_BYTES_MAX) {
            return refused(format!("a trigger must have 1 to {TRIGGER_BYTES_MAX} bytes"));
        }
        let triggered = |tag: &&Tag| tags.triggers.iter().any(|text| tag.begin.starts_with(text));
        if let Some(index) = tags.tags.iter().position(|tag| !triggered(&tag)) {
            return refused(format!("tag {index} begins with none of the triggers"));
        }
        let begun = |trigger: &String| {
            tags.tags.iter().filter(|tag| tag.begin.starts_with(trigger)).count()
        };
        if tags.triggers.iter().map(begun).sum::<usize>() > PARTS_MAX {
            return refused(format!("there are more than {PARTS_MAX} tags, for all triggers"));
        }
        let (mut stages, mut markers) = (Vec::new(), Vec::new());
        for trigger in &tags.triggers {
            let mut lark = Lark::new(self.vocabulary, self.vocabulary.markers());
            let ways = tags.tags.iter().filter_map(|tag| tag.after(trigger, &mut lark).transpose());
            let ways: Vec<String> = ways.collect::<Result<_, _>>()?;
            if ways.is_empty() {
                return refused(format!("no tag begins with the trigger '{trigger}'"));
            }
            stages.push(self.within(lark.finish(&ways.join(" | "))).map_err(GrammarError::Form)?);
            markers.push((trigger.clone(), stages.len() - 1));
        }
        let tagged = stages.len();
        if !tags.single {
            // Behind a tag there is text, in which nothing is demanded any more.
            stages.push(self.watch(markers.clone(), true));
            for stage in &mut stages[..tagged] {
                let Stage::Within { then, .. } = stage else { continue };
                *then = Some(tagged);
            }
        }
        Ok(self.in_turn(stages, markers, !tags.demanded))
    }
}
