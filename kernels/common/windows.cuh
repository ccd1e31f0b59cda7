// windows: which token of a grid stands at which place of which window, computed from its number: nothing is rolled, padded or cut.
// grid      tokens of up to three axes, row by row; rolled back by `shift`, `front` places before the first token, cut into windows
// regions   of a shifted axis: what the ends of the grid separate; tokens of a window see each other if their regions are the same

#pragma once
#include "common/device.cuh"

// As src/ops/attention/windows.rs lays it out. Without windows all counts are 0.
struct Windows {
    int grid[3], size[3], shift[3], front[3], count[3], closed[3];
    int hides;  // whether there are regions or places without a token

    DEVICE bool are_there() const { return count[0] > 0; }
    // Of a sample, and of a window.
    DEVICE int all() const { return count[0] * count[1] * count[2]; }
    DEVICE int places() const { return size[0] * size[1] * size[2]; }

    DEVICE int region(int axis, int rolled) const {
        if (shift[axis] == 0 || rolled < grid[axis] - size[axis]) return 0;
        return rolled < grid[axis] - shift[axis] || closed[axis] ? 1 : 2;
    }
    // The coordinates of a place, 10 bits each, of windows of at most 1023 along an axis: the same in every window.
    DEVICE int spot(int at) const {
        int spot = 0;
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) {
            int above = at / size[axis];
            spot |= (at - above * size[axis]) << 10 * axis, at = above;
        }
        return spot;
    }
    // The rolled coordinates of a window's first place.
    DEVICE void corner(int (&first)[3], int window) const {
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) {
            int over = window / count[axis];
            first[axis] = (window - over * count[axis]) * size[axis] - front[axis], window = over;
        }
    }
    // The token at a place's coordinates of the window with this corner, -1 if it is none, and its region.
    DEVICE int token_at(const int (&first)[3], int spot, int& of) const {
        int number = 0, stride = 1;
        bool is_token = true;
        of = 0;
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) {
            int rolled = first[axis] + (spot >> 10 * axis & 1023), back = rolled + shift[axis];
            is_token &= rolled >= 0 && rolled < grid[axis];
            number += (back >= grid[axis] ? back - grid[axis] : back) * stride;
            of = of * 3 + region(axis, rolled), stride *= grid[axis];
        }
        if (!is_token) of = -1;
        return is_token ? number : -1;
    }
    // The token at place `at` of a window, -1 if it is none, and its region.
    DEVICE int token(int window, int at, int& of) const {
        int number = 0, stride = 1;
        bool is_token = true;
        of = 0;
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) {
            int over = window / count[axis], rolled = (window - over * count[axis]) * size[axis] - front[axis];
            int above = at / size[axis];
            rolled += at - above * size[axis], window = over, at = above;
            is_token &= rolled >= 0 && rolled < grid[axis];
            int back = rolled + shift[axis];
            number += (back >= grid[axis] ? back - grid[axis] : back) * stride;
            of = of * 3 + region(axis, rolled), stride *= grid[axis];
        }
        if (!is_token) of = -1;
        return is_token ? number : -1;
    }
    // Where a token stands, and its region.
    DEVICE void find(int token, int& window, int& at, int& of) const {
        int windows_of = 1, places_of = 1;
        window = 0, at = 0, of = 0;
#pragma unroll
        for (int axis = 2; axis >= 0; --axis) {
            int above = token / grid[axis], rolled = token - above * grid[axis] - shift[axis];
            if (rolled < 0) rolled += grid[axis];
            token = above;
            int there = rolled + front[axis], over = there / size[axis];
            window += over * windows_of, at += (there - over * size[axis]) * places_of;
            of = of * 3 + region(axis, rolled), windows_of *= count[axis], places_of *= size[axis];
        }
    }
    // Whether some places of a window do not see each other.
    DEVICE bool is_mixed(const int (&first)[3]) const {
        bool mixed = false;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            int last = first[axis] + size[axis] - 1;
            mixed |= first[axis] < 0 || last >= grid[axis] || region(axis, first[axis]) != region(axis, last);
        }
        return mixed;
    }
    DEVICE bool is_mixed(int window) const {
        int first[3];
        corner(first, window);
        return is_mixed(first);
    }
};
