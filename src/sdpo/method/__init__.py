"""The method of the paper in pure torch: types, schedules, dense rewards, credit, advantages, objectives."""
