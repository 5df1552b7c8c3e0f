//! How often experts are asked for, the recent past counting most.

/// What is left of an expert's heat after each pass: half of it after 140.
const KEPT: f32 = 0.995;

/// `[layer · experts + expert]`.
pub struct Heat {
    experts: usize,
    heat: Vec<f32>,
}

impl Heat {
    /// Nobody has been asked for yet.
    pub fn new(layers: u32, experts: u32) -> Heat {
        Heat { experts: experts as usize, heat: vec![0.0; (layers * experts) as usize] }
    }

    /// Notes who was asked for in a layer.
    pub fn note(&mut self, layer: u32, chosen: &[u32]) {
        let layer = &mut self.heat[layer as usize * self.experts..][..self.experts];
        chosen.iter().for_each(|&expert| layer[expert as usize] += 1.0);
    }

    /// Notes how often each expert of some layers has been asked for, from layer `first` on.
    pub fn note_counts(&mut self, first: u32, counts: &[u32]) {
        let heat = &mut self.heat[first as usize * self.experts..][..counts.len()];
        heat.iter_mut().zip(counts).for_each(|(heat, &count)| *heat += count as f32);
    }

    /// A pass is over.
    pub fn cool(&mut self) {
        self.heat.iter_mut().for_each(|heat| *heat *= KEPT);
    }

    /// Of one expert.
    pub fn of(&self, layer: u32, expert: u32) -> f32 {
        self.heat[layer as usize * self.experts + expert as usize]
    }

    /// The hottest expert of those that `counts`: its layer, its number, its heat.
    pub fn hottest(&self, counts: impl Fn(u32, u32) -> bool) -> Option<(u32, u32, f32)> {
        let all =
            self.heat.iter().enumerate().map(|(key, &heat)| {
                ((key / self.experts) as u32, (key % self.experts) as u32, heat)
            });
        let mut best: Option<(u32, u32, f32)> = None;
        for (layer, expert, heat) in all {
            if heat > best.map_or(0.0, |(.., heat)| heat) && counts(layer, expert) {
                best = Some((layer, expert, heat));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::Heat;

    #[test]
    fn the_recent_past_counts_most() {
        let mut heat = Heat::new(2, 3);
        assert_eq!(heat.hottest(|_, _| true), None);
        heat.note(1, &[2, 2, 2, 0]);
        assert_eq!(heat.hottest(|_, _| true), Some((1, 2, 3.0)));
        (0..200).for_each(|_| heat.cool());
        heat.note(0, &[1, 1]);
        assert_eq!(heat.hottest(|_, _| true), Some((0, 1, 2.0)));
        let other = heat.hottest(|layer, _| layer == 1).unwrap();
        assert_eq!((other.0, other.1), (1, 2));
        assert_eq!(heat.of(1, 1), 0.0);
        heat.note_counts(1, &[0, 5, 0]);
        assert_eq!(heat.of(1, 1), 5.0);
    }
}
