/* A step of GridWorld on a CPU in one pass: move, then view and shadows. The same integers as the operations of
   world.py, cells.py and visibility.py, which tests compare them with. Compiled and called by native.py.

   B environments; a grid of `area` packed cells each; C codes of cells; V cells along each side of the view. */

#include <stdint.h>

/* Take the actions; return -1, or the first environment whose action is none, with nothing changed then.

   The state comes as `position`, `direction`, `carried`, `num_steps` [B], and goes to the first four rows of `after`
   [6, B]; the last two are `front` and `outcome`. `cells` [B, area] is written. `is_late` is true from step `max_steps` on. */
int64_t grid_move(
    int64_t num_envs, int64_t area, int64_t num_actions, int64_t num_codes, int64_t max_steps,
    const int64_t *actions,
    const int64_t *forward, const int64_t *turned, const int32_t *outcome_ahead, const int64_t *outcome_carried,
    const uint8_t *outcome_moves, int32_t *cells, const int64_t *position, const int64_t *direction,
    const int64_t *carried, const int64_t *num_steps, int64_t *after, int32_t *ahead, uint8_t *is_late)
{
    for (int64_t b = 0; b < num_envs; b++)
        if (actions[b] < 0 || actions[b] >= num_actions)
            return b;
    int64_t *to_position = after, *to_direction = after + num_envs, *to_carried = after + 2 * num_envs;
    int64_t *to_num_steps = after + 3 * num_envs, *to_front = after + 4 * num_envs, *to_outcome = after + 5 * num_envs;
    for (int64_t b = 0; b < num_envs; b++) {
        int64_t front = position[b] + forward[direction[b]];
        int32_t *cell = cells + b * area + front;
        ahead[b] = *cell >> 24 & 127;
        int64_t outcome = (actions[b] * num_codes + carried[b]) * num_codes + ahead[b];
        *cell = outcome_ahead[outcome];
        to_position[b] = outcome_moves[outcome] ? front : position[b];
        to_direction[b] = turned[actions[b] * 4 + direction[b]];
        to_carried[b] = outcome_carried[outcome];
        to_num_steps[b] = num_steps[b] + 1;
        is_late[b] = num_steps[b] + 1 >= max_steps;
        to_front[b] = front;
        to_outcome[b] = outcome;
    }
    return -1;
}

/* Write what is seen, [B, V * V] packed, 0 where it is hidden unless `sees_through`. See visibility.spread. */
void grid_look(
    int64_t num_envs, int64_t area, int64_t view_size, int64_t agent_cell, int64_t sees_through,
    const int32_t *offsets, const int32_t *packed, const int32_t *cells, const int64_t *position,
    const int64_t *direction, const int64_t *carried, int32_t *image)
{
    int64_t num_cells = view_size * view_size;
    uint64_t first = 1, all = sees_through ? 0 : (first << view_size) - 1; /* V is at most 53 where anything hides */
    for (int64_t b = 0; b < num_envs; b++, image += num_cells) {
        const int32_t *from = cells + b * area + position[b], *offset = offsets + direction[b] * num_cells;
        for (int64_t i = 0; i < num_cells; i++)
            image[i] = from[offset[i]];
        uint64_t seen = sees_through ? 0 : first << view_size / 2;
        for (int64_t row = view_size - 1; row >= 0 && !sees_through; row--) {
            int32_t *cell = image + row * view_size;
            uint64_t hides = 0;
            for (int64_t column = 0; column < view_size; column++)
                hides |= (uint64_t)(cell[column] < 0) << column;
            uint64_t to_right = ~hides & all >> 1, to_left = ~hides & all & ~first;
            seen |= to_right ^ (to_right + (seen & to_right));
            uint64_t right = seen & to_right, passes = to_left;
            for (int64_t steps = 1; steps < view_size; steps *= 2) {
                seen |= (seen & passes) >> steps;
                passes &= passes << steps;
            }
            uint64_t left = seen & to_left;
            for (int64_t column = 0; column < view_size; column++)
                cell[column] &= -(int32_t)(seen >> column & 1);
            seen = right | right << 1 | left | left >> 1;
        }
        image[agent_cell] = packed[carried[b]];
    }
}
