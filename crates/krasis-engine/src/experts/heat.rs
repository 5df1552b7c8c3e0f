//! How often experts are asked for, the recent past counting most.

/// What is left of an expert's heat after each pass: half of it after 140.
const KEPT: f32 = 0.995;

/// How often experts were asked for in other runs: `[layer with experts][expert]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeatMap {
    /// The counts.
    pub layers: Vec<Vec<u64>>,
}

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

    /// Takes experts to be as hot as if tokens that are routed to `top_k` of them had been written for
    /// long, and had asked as often for each as the map says. False if the map is of other layers.
    pub fn remember(&mut self, map: &HeatMap, top_k: u32) -> bool {
        let layers = self.heat.len() / self.experts.max(1);
        if map.layers.len() != layers || map.layers.iter().any(|of| of.len() != self.experts) {
            return false;
        }
        let settled = top_k as f32 / (1.0 - KEPT);
        for (heat, counts) in self.heat.chunks_exact_mut(self.experts.max(1)).zip(&map.layers) {
            let sum: f64 = counts.iter().map(|&count| count as f64).sum();
            let share = |count: u64| (count as f64 / sum.max(1.0)) as f32;
            heat.iter_mut().zip(counts).for_each(|(heat, &n)| *heat = settled * share(n));
        }
        true
    }

    /// The hottest experts, so many, by layer and number; those that nobody has asked for come layer by
    /// layer in equal parts.
    pub fn hottest_of_all(&self, count: usize) -> Vec<(u32, u32)> {
        let experts = self.experts.max(1);
        let mut keys: Vec<usize> = (0..self.heat.len()).collect();
        // Of equally hot ones the first of each layer before the second of any.
        keys.sort_by(|&a, &b| {
            let order = |key: usize| (key % experts, key / experts);
            self.heat[b].total_cmp(&self.heat[a]).then(order(a).cmp(&order(b)))
        });
        keys.truncate(count);
        keys.sort_unstable();
        keys.into_iter().map(|key| ((key / experts) as u32, (key % experts) as u32)).collect()
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
}

#[cfg(test)]
mod tests {
    use super::{Heat, HeatMap};

    #[test]
    fn what_is_remembered_is_hot_from_the_start() {
        let mut heat = Heat::new(2, 3);
        assert_eq!(heat.hottest_of_all(3), [(0, 0), (0, 1), (1, 0)]);
        let map = HeatMap { layers: vec![vec![0, 1, 9], vec![u64::MAX, 0, u64::MAX]] };
        assert!(heat.remember(&map, 2));
        assert_eq!(heat.hottest_of_all(3), [(0, 2), (1, 0), (1, 2)]);
        // As hot as can be: two of the three are asked for by each of many tokens.
        let mut long = Heat::new(2, 3);
        for _ in 0..3000 {
            long.note(1, &[0, 2]);
            long.cool();
        }
        assert!((heat.of(1, 0) / long.of(1, 0) - 1.0).abs() < 0.02);
        for layers in [vec![], vec![vec![1, 2, 3]], vec![vec![1, 2], vec![3, 4]]] {
            let before = heat.hottest_of_all(2);
            assert!(!heat.remember(&HeatMap { layers }, 2));
            assert_eq!(heat.hottest_of_all(2), before);
        }
        assert!(heat.remember(&HeatMap { layers: vec![vec![0; 3]; 2] }, 2));
        assert_eq!(heat.of(0, 2), 0.0);
    }

    #[test]
    fn the_recent_past_counts_most() {
        let mut heat = Heat::new(2, 3);
        heat.note(1, &[2, 2, 2, 0]);
        assert_eq!((heat.of(1, 2), heat.of(1, 0), heat.of(0, 2)), (3.0, 1.0, 0.0));
        (0..200).for_each(|_| heat.cool());
        heat.note(0, &[1, 1]);
        assert_eq!(heat.of(0, 1), 2.0);
        assert!((0.9..1.2).contains(&heat.of(1, 2)), "a third after 200 passes");
        assert_eq!(heat.hottest_of_all(1), [(0, 1)]);
        heat.note_counts(1, &[0, 5, 0]);
        assert_eq!(heat.of(1, 1), 5.0);
    }
}
