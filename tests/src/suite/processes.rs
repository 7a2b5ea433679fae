//! placeholder

cases! { "processes"; }
